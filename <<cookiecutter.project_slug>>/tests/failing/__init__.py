"""A model/ that fails in the middle of a run, at rows whose label says where."""
