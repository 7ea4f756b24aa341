"""Folders with an optimization.py: optimizers with the state formats of other packages."""
