"""Errors that end a program with one sentence: what is wrong, where, and what was expected."""

import traceback
from pathlib import Path

REFUSED = 2  # exit code after a UserError
INTERRUPTED = 130  # exit code after a Ctrl-C, as in shells
STOPPED = 75  # exit code after Stopped; EX_TEMPFAIL of sysexits.h: try again
MODEL = Path(__file__).parent / "model"


class UserError(ValueError):
    """Something cannot be done as the user asked. Ends the program with exit code 2."""


class DataError(UserError):
    """A data file cannot be used."""


class RunError(UserError):
    """A run cannot start or continue."""


class RankError(RunError):
    """An error of a single rank. That rank prints the error and exits; then the others end, too."""


class Stopped(Exception):
    """A run was saved and stopped after a signal. Ends the program with exit code 75."""


def describe(error: Exception) -> str:
    """Describe an error on one line.

    Return the type and the first line of the message. If the traceback contains code of model/,
    also return the file and line of the last call in model/. For a UserError, return only the first
    line of the message.
    """
    lines = str(error).strip().splitlines()
    if isinstance(error, UserError):
        return lines[0]
    reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    places = [frame for frame in frames if Path(frame.filename).parent == MODEL]
    if not places:
        return reason
    place = f"model/{Path(places[-1].filename).name}:{places[-1].lineno}"
    return f"{reason}; at {place}"
