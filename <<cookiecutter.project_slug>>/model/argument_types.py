"""Types of command line arguments."""

from argparse import ArgumentTypeError


def fraction(text: str) -> float:
    """Parse a number.

    Raises:
        ArgumentTypeError: It is less than 0, or not less than 1.
    """
    if not 0 <= (number := float(text)) < 1:
        raise ArgumentTypeError(f"{text}: expected at least 0 and less than 1")
    return number
