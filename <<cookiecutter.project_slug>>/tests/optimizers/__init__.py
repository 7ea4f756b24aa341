"""Optimizers with the state formats of other packages: folders with an optimization.py."""
