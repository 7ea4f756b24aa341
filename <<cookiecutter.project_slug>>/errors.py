"""Errors that end a program in one sentence: what, where, and what was expected."""


class UserError(ValueError):
    """A request that cannot be met. Ends the program with exit code 2."""


class DataError(UserError):
    """A data file that cannot be used."""


class RunError(UserError):
    """A run that cannot start or continue."""


class RankError(RunError):
    """An error of one rank alone: only that rank can report it, and its exit ends the others."""


class Stopped(Exception):
    """A run that was asked to stop and has saved. Ends the program with exit code 75."""
