"""Format examples, label counts and label weights as lines of text."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

EXAMPLES = 3  # maximum number of examples to show
WIDTH = 160  # maximum number of characters to show of an input or a target
LABELS = 20  # maximum number of labels whose counts or weights are shown


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
    """Return a line with the count of each label.

    If there are more than `LABELS` labels, show the first ones and the number of the others.
    """
    parts = [f"{name} {count:,}" for name, count in list(counts.items())[:LABELS]]
    if len(counts) > LABELS:
        parts.append(f"and {len(counts) - LABELS:,} more labels")
    return "labels: " + ", ".join(parts)


def describe_weights(names: list[str], weights: Iterable[float]) -> str:
    """Return a line with the weight of each label.

    If there are more than `LABELS` labels, show the first ones and the number of the others.
    """
    pairs = list(zip(names, weights, strict=True))
    shown = ", ".join(f"{name} {weight:.4g}" for name, weight in pairs[:LABELS])
    more = f" and {len(pairs) - LABELS} more" if len(pairs) > LABELS else ""
    return f"weights of the labels in the loss: {shown}{more}"
