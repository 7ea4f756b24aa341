"""Packages that only some runs need: the extras of pyproject.toml."""

import importlib.util

from errors import RunError


def require(package: str, extra: str, what: str) -> None:
    """Check that a package is installed.

    Args:
        what: What needs it, for the message.

    Raises:
        RunError: It is not.
    """
    if not importlib.util.find_spec(package):
        raise RunError(f"{what} needs the package {package}: pip install -e '.[{extra}]'")
