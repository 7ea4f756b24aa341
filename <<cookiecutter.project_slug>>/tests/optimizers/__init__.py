"""Optimizers that keep their state as other packages do: folders with an optimization.py."""
