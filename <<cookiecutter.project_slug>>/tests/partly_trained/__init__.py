"""A model with parameters that are frozen, never used, or unused in the first steps."""
