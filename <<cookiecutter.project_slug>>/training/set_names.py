"""Names of validation sets, as in `--valid_input news=a.jsonl web=b.jsonl`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errors import RunError

NAMED = re.compile(r"(?P<name>[\w-]+)=(?P<path>.+)")


def named_sources(value: str | Sequence[str]) -> dict[str, str | list[str]]:
    """Group the values of `--valid_input` by name: `news=a.jsonl news=b.jsonl web=c.jsonl`.

    An existing path is never split at "=". Files without names are one set, named "".

    Raises:
        RunError: Only some of the values have a name.
    """
    parts = [value] if isinstance(value, str) else list(value)
    matches = {part: NAMED.fullmatch(part) for part in parts if not _exists(part)}
    named = [match for part in parts if (match := matches.get(part)) is not None]
    if not named:
        return {"": value if isinstance(value, str) else parts}
    if len(named) < len(parts):
        plain = next(part for part in parts if matches.get(part) is None)
        raise RunError(
            f"--valid_input {plain}: has no name, unlike {named[0].string}; expected a name for "
            "each file (name=file), or for none"
        )
    sources: dict[str, list[str]] = {}
    for match in named:
        sources.setdefault(match["name"], []).append(match["path"])
    return {name: paths[0] if len(paths) == 1 else paths for name, paths in sources.items()}


def named_scores(name: str, scores: dict[str, Any]) -> dict[str, Any]:
    """Prefix scores with the name of a set, as in `news/loss`; {} for a set without a name."""
    return {f"{name}/{score}": value for score, value in scores.items() if name}


def _exists(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, RuntimeError):  # the path is too long, or ~USER of an unknown user
        return False
