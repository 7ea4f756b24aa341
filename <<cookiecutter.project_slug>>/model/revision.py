"""Hub ids with an optional revision: `owner/name` or `owner/name@revision`."""

from pathlib import Path


def split_revision(model_id: str) -> tuple[str, dict[str, str]]:
    """Split a Hub id into its name and the argument `revision` of `from_pretrained`.

    Returns:
        The name; and `{"revision": ...}`, or {} if there is no revision. The path of an existing
        folder is never split, even if it contains "@".
    """
    name, mark, revision = model_id.rpartition("@")
    if not mark or not name or not revision or Path(model_id).exists():
        return model_id, {}
    return name, {"revision": revision}


def join_revision(name: str, revision: str | None) -> str:
    """Append a revision to a Hub id; return the path of a folder unchanged."""
    return name if revision is None or Path(name).exists() else f"{name}@{revision}"
