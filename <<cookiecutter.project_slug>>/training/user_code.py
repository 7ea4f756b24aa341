"""Report errors raised in model/ as one sentence, with file and line."""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

import model
from errors import RankError, RunError, UserError

from .distributed import is_lost_connection

FOLDER = Path(model.__file__).parent
SHOWN = 8  # examples listed in a message


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


@contextmanager
def at_place(place: str, examples: Sequence[int] = ()) -> Iterator[None]:
    """Convert an exception of the user's code inside the loop to a RankError.

    Args:
        place: Epoch and step, or validation: the beginning of the message.
        examples: Indices of the examples of the micro-batch.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if is_lost_connection(error):
            raise
        of = f", {list_examples(examples)}" if examples else ""
        expected = "expected model/ to handle each example, as it did the first ones"
        ending = "" if isinstance(error, RankError) else f"; {expected}"
        raise RankError(f"{place}{of}: {describe(error)}{ending}") from error


def list_examples(examples: Sequence[int]) -> str:
    shown = ", ".join(map(str, examples[:SHOWN]))
    more = ", ..." if len(examples) > SHOWN else ""
    return f"examples {shown}{more} (0-based)"


def describe(error: Exception) -> str:
    """Return the type of an error, its first line, and the last line of model/ in its traceback."""
    lines = str(error).strip().splitlines()
    if isinstance(error, UserError):
        return lines[0]
    reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    places = [frame for frame in frames if Path(frame.filename).parent == FOLDER]
    if not places:
        return reason
    place = f"model/{Path(places[-1].filename).name}:{places[-1].lineno}"
    return f"{reason}; at {place}"
