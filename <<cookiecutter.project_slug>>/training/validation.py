"""Validation sets of a run, optionally named by `--valid_input`."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from model.interface import Scorer

from .batches import Batches
from .config import LOSS
from .set_names import named_scores
from .user_code import at_place


@dataclass
class ValidationSet:
    """A validation set.

    Attributes:
        name: Name of the set; "" for a single set without a name.
        batches: Batches of the examples of the set.
        scorers: Objects to which each batch is added: first the scorer of all sets together, then
            the scorer of this set. If there is a single set, there is a single scorer.
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


def combine(results: list[SetResult], scores: Scorer) -> dict[str, float]:
    """Return the log of all sets together, followed by the logs of the named sets.

    Args:
        scores: Scorer of all sets together.
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
        count: Number of target items, or the sum of their weights.
    """
    means = {name: value / (count or 1) for name, value in sums.items()}
    with at_place("validation"):
        scored = scores.compute(means[LOSS])
    return {LOSS: means.pop(LOSS), **means, **scored, "count": count}
