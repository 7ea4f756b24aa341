"""A model/ that fails during the run, at the place given by the label of a row."""
