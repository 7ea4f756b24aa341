"""A model with frozen parameters, unused parameters, and parameters that early steps do not use."""
