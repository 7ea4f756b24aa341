"""Steps, checkpoints, resume. Imports nothing of a task's `model/` files or of `reporting/`."""
