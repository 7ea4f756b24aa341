"""Training data, steps, checkpoints and resuming. This code is the same for every task."""
