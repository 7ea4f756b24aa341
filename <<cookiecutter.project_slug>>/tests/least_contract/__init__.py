"""A model/ with nothing but what README.md requires: a config, a model and a data set."""
