"""A model/ with the required parts only: a configuration, a model and a data set."""
