"""Report errors raised in model/ as one sentence, with file and line."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from errors import RankError, RunError, UserError, describe

from .distributed import is_lost_connection

SHOWN = 8  # maximum number of examples listed in a message


@contextmanager
def user_code(what: str) -> Iterator[None]:
    """Convert an exception of the user's code to a RunError whose message begins with `what`.

    Two kinds of exceptions are not converted: `UserError`, whose message already describes the
    error, and out-of-memory errors, which are not errors in the code.
    """
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise RunError(f"{what} ({describe(error)})") from error


@contextmanager
def at_place(place: str, examples: Sequence[int] = ()) -> Iterator[None]:
    """Convert an exception in a step of training or validation, or in a prediction, to a RankError.

    Out-of-memory errors and lost connections to other processes are not converted.

    Args:
        place: Beginning of the message, such as epoch and step.
        examples: Indices of the examples of the batch, for the message.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if is_lost_connection(error):
            raise
        of = f", {list_examples(examples)}" if examples else ""
        expected = "expected model/ to handle all examples like the first ones"
        ending = "" if isinstance(error, UserError) else f"; {expected}"
        raise RankError(f"{place}{of}: {describe(error)}{ending}") from error


def list_examples(examples: Sequence[int]) -> str:
    shown = ", ".join(map(str, examples[:SHOWN]))
    more = ", ..." if len(examples) > SHOWN else ""
    return f"examples {shown}{more} (0-based)"
