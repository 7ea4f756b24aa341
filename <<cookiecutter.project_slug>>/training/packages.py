"""Check that optional packages are installed. The extras in pyproject.toml install them."""

import importlib.util

from errors import RunError


def require(package: str, extra: str, what: str) -> None:
    """Check that a package is installed.

    Args:
        what: Beginning of the message: what needs the package, such as an option or a script.

    Raises:
        RunError: The package is not installed.
    """
    if not importlib.util.find_spec(package):
        raise RunError(f"{what} needs the package {package}: pip install -e '.[{extra}]'")
