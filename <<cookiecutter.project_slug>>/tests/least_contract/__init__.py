"""A model/ with only the required parts: a configuration, a model and a data set."""
