"""Parse `--search` of sweep.py: arguments of train.py, and the values to try."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from errors import RunError

if TYPE_CHECKING:  # optuna is an optional dependency: see pyproject.toml
    from optuna.distributions import BaseDistribution

FORMS = "expected NAME=A,B,C or NAME=LOW..HIGH or NAME=log:LOW..HIGH"


def parse_space(texts: list[str]) -> dict[str, BaseDistribution]:
    """Parse the values of `--search`; return the distribution of each argument.

    Args:
        texts: `NAME=A,B,C` for a choice; `NAME=LOW..HIGH` for a range, of integers if both bounds
            are integers; `NAME=log:LOW..HIGH` for a range sampled on a log scale.

    Raises:
        RunError: A text does not have one of these forms, LOW is not less than HIGH, a range on a
            log scale includes 0 or negative numbers, or a name or a value is repeated.
    """
    space: dict[str, BaseDistribution] = {}
    for text in texts:
        name, is_given, values = text.partition("=")
        if not is_given or not name or not values:
            raise RunError(f"--search {text}: {FORMS}")
        if name in space:
            raise RunError(f"--search {text}: {name} is given twice; expected it once")
        space[name] = _distribution(text, values)
    return space


def _distribution(text: str, values: str) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    is_log = values.startswith("log:")
    low, _, high = values.removeprefix("log:").partition("..")
    kinds: list[tuple[type, Any]] = [(int, IntDistribution), (float, FloatDistribution)]
    for number, distribution in kinds:
        try:
            bounds = number(low), number(high)
        except ValueError:
            continue
        if not bounds[0] < bounds[1] or (is_log and bounds[0] <= 0):
            least = "0 < LOW < HIGH" if is_log else "LOW < HIGH"
            raise RunError(f"--search {text}: expected {least}")
        return distribution(*bounds, log=is_log)
    choices = values.split(",")
    if is_log or "" in choices or len(set(choices)) < len(choices):
        raise RunError(f"--search {text}: {FORMS}, with different values")
    return CategoricalDistribution(choices)


def grid(space: dict[str, BaseDistribution]) -> Iterator[dict[str, str]]:
    """Yield all combinations of the choices.

    Raises:
        RunError: An argument has a range.
    """
    choices = []
    for name, values in space.items():
        if not hasattr(values, "choices"):
            raise RunError(f"--search {name}: has a range of values; expected --trials, too")
        choices.append(values.choices)
    for combination in itertools.product(*choices):
        yield dict(zip(space, combination, strict=True))
