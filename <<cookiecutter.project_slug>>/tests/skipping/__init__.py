"""Models with a part that some steps do not use."""
