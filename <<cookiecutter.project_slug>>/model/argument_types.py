"""Types of command line arguments."""

from argparse import ArgumentTypeError


def fraction(text: str) -> float:
    """Parse a number that is at least 0 and less than 1.

    Raises:
        ArgumentTypeError: The number is outside this range.
        ValueError: `text` is not a number.
    """
    if not 0 <= (number := float(text)) < 1:
        raise ArgumentTypeError(f"{text}: expected at least 0 and less than 1")
    return number
