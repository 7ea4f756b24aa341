"""Types of command line arguments."""

from argparse import ArgumentTypeError
from math import inf


def fraction(text: str) -> float:
    """Parse a number that is at least 0 and less than 1.

    Raises:
        ArgumentTypeError: The number is outside this range.
        ValueError: `text` is not a number.
    """
    if not 0 <= (number := float(text)) < 1:
        raise ArgumentTypeError(f"{text}: expected at least 0 and less than 1")
    return number


def positive_int(text: str) -> int:
    """Parse a whole number of at least 1.

    Raises:
        ArgumentTypeError: The number is smaller.
        ValueError: `text` is not a whole number.
    """
    if (number := int(text)) < 1:
        raise ArgumentTypeError(f"{text}: expected at least 1")
    return number


def positive_float(text: str) -> float:
    """Parse a finite number above 0.

    Raises:
        ArgumentTypeError: The number is outside this range.
        ValueError: `text` is not a number.
    """
    if not 0 < (number := float(text)) < inf:
        raise ArgumentTypeError(f"{text}: expected a finite number above 0")
    return number
