"""Check for optional packages: the extras of pyproject.toml."""

import importlib.util

from errors import RunError


def require(package: str, extra: str, what: str) -> None:
    """Check that a package is installed.

    Args:
        what: Option or script that needs the package, for the message.

    Raises:
        RunError: The package is not installed.
    """
    if not importlib.util.find_spec(package):
        raise RunError(f"{what} needs the package {package}: pip install -e '.[{extra}]'")
