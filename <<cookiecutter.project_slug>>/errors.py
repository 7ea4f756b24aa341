"""Errors that end a program in one sentence: what, where, and what was expected."""


class UserError(ValueError):
    """A request that cannot be met. Ends the program with exit code 2."""


class DataError(UserError):
    """A data file that cannot be used."""


class RunError(UserError):
    """A run cannot start or continue."""


class RankError(RunError):
    """An error on a single rank, which reports it; its exit ends the other ranks."""


class Stopped(Exception):
    """A run that was asked to stop and has saved. Ends the program with exit code 75."""
