"""The machinery: batches, checkpoints, progress. It knows no task, and nothing of `model/`."""


class RunError(ValueError):
    """A run that cannot start or go on: the message says what, where and what was expected."""


class Stopped(Exception):
    """A run that was asked to stop, and has saved: the message says by what, and where it is."""
