"""Report errors raised in model/ as one sentence, with file and line."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import model
from errors import RunError, UserError

FOLDER = Path(model.__file__).parent


@contextmanager
def user_code(what: str) -> Iterator[None]:
    """Convert an exception of the user's code to a RunError that begins with `what`.

    Out-of-memory errors are not converted: they are not errors of the code.
    """
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise RunError(f"{what} ({describe(error)})") from error


def describe(error: Exception) -> str:
    """Return the type of an error, its first line, and the last line of model/ in its traceback."""
    lines = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    places = [frame for frame in frames if Path(frame.filename).parent == FOLDER]
    if not places:
        return reason
    place = f"model/{Path(places[-1].filename).name}:{places[-1].lineno}"
    return f"{reason}; at {place}"
