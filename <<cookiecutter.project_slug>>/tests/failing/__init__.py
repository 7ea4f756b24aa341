"""A model/ that fails during the run: the label of a row determines which function fails."""
