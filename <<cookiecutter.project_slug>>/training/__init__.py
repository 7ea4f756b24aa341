"""The machinery: steps, checkpoints, resume. It imports no task and nothing of `reporting/`."""
