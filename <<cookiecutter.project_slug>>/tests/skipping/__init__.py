"""Models with parameters that some steps do not use."""
