"""Models with an expert that some steps leave out."""
