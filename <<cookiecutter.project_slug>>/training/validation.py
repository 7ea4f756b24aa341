"""Validation sets of a run, optionally named by `--valid_input`."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from errors import RunError
from model.interface import Scorer

from .batches import Batches
from .losses import LOSS
from .user_code import at_place

NAMED = re.compile(r"(?P<name>[\w-]+)=(?P<path>.+)")


@dataclass
class ValidationSet:
    """A validation set.

    Attributes:
        name: "" for a single set without a name.
        batches: Its examples.
        scorers: Objects to which each batch is added: the one for all sets together, and last
            the one for this set. With a single set, the two are the same object.
    """

    name: str
    batches: Batches
    scorers: list[Scorer]


class SetResult(NamedTuple):
    """Result of a validation set.

    Attributes:
        sums: Sums of the losses over all ranks, by name.
        log: Mean losses, scores, and number of target items.
    """

    name: str
    sums: dict[str, float]
    log: dict[str, float]


def named_sources(value: str | Sequence[str]) -> dict[str, str | list[str]]:
    """Group the values of `--valid_input` by name: `news=a.jsonl news=b.jsonl web=c.jsonl`.

    An existing path is never split at "=". Files without names are one set, named "".

    Raises:
        RunError: Only some of the values have a name.
    """
    parts = [value] if isinstance(value, str) else list(value)
    matches = {part: NAMED.fullmatch(part) for part in parts if not _exists(part)}
    named = [match for part in parts if (match := matches.get(part)) is not None]
    if not named:
        return {"": value if isinstance(value, str) else parts}
    if len(named) < len(parts):
        plain = next(part for part in parts if matches.get(part) is None)
        raise RunError(
            f"--valid_input {plain}: has no name, unlike {named[0].string}; expected a name for "
            "each file (name=file), or for none"
        )
    sources: dict[str, list[str]] = {}
    for match in named:
        sources.setdefault(match["name"], []).append(match["path"])
    return {name: paths[0] if len(paths) == 1 else paths for name, paths in sources.items()}


def named_scores(name: str, scores: dict[str, Any]) -> dict[str, Any]:
    """Prefix scores with the name of a set, as in `news/loss`; {} for a set without a name."""
    return {f"{name}/{score}": value for score, value in scores.items() if name}


def combine(results: list[SetResult], scores: Scorer) -> dict[str, float]:
    """Return the log of all sets together, followed by the logs of the named sets.

    Args:
        scores: Scores of all sets together.
    """
    first = results[0]
    log = first.log
    if len(results) > 1:
        sums = {name: math.fsum(result.sums[name] for result in results) for name in first.sums}
        log = summarize(sums, sum(result.log["count"] for result in results), scores)
    for result in results:
        log = log | named_scores(result.name, result.log)
    return log


def summarize(sums: dict[str, float], count: float, scores: Scorer) -> dict[str, float]:
    """Return mean losses, scores, and the number of target items.

    Args:
        sums: Sums of the losses over all ranks, by name.
        count: Target items, or the sum of their weights.
    """
    means = {name: value / (count or 1) for name, value in sums.items()}
    with at_place("validation"):
        scored = scores.compute(means[LOSS])
    return {LOSS: means.pop(LOSS), **means, **scored, "count": count}


def _exists(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, RuntimeError):  # a name that is too long, or of an unknown user
        return False
