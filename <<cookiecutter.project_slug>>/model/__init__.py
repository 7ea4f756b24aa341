"""Yours to rewrite: what the model is, how it computes its loss, and what it reads."""
