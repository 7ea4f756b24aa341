"""Format examples and label counts as lines of text."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

EXAMPLES = 3  # shown
WIDTH = 160  # characters shown of each
LABELS = 20  # counts shown


def describe_examples(
    dataset: Any, decode: Callable[[dict[str, Any]], tuple[str, str]]
) -> Iterator[str]:
    """Yield lines that show a few examples of a data set.

    Args:
        decode: Returns the input and the target of an example as text.
    """
    count = min(EXAMPLES, len(dataset))
    for index in np.linspace(0, len(dataset) - 1, count).astype(int).tolist():
        source, target = decode(dataset[index])
        yield f"example {index}"
        yield f"  input:  {source[:WIDTH]!r}"
        yield f"  target: {target[:WIDTH]!r}"


def describe_counts(counts: dict[str, int]) -> str:
    """Return a line with the number of examples of each label."""
    parts = [f"{name} {count:,}" for name, count in list(counts.items())[:LABELS]]
    if len(counts) > LABELS:
        parts.append(f"and {len(counts) - LABELS:,} more labels")
    return "labels: " + ", ".join(parts)
