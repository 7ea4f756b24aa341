"""A model with frozen parameters, parameters never used, and some not used in the first steps."""
