"""Checkpoints on the Hub: `hf://owner/name`, or `hf://owner/name@revision`."""

from pathlib import Path

from huggingface_hub import snapshot_download

from errors import RunError
from model.revision import split_revision

PREFIX = "hf://"
# Name of the uploaded last/ in a repository. transformers uses the same name.
LAST = "last-checkpoint"


def is_remote(place: str | None) -> bool:
    return place is not None and place.startswith(PREFIX)


def download_checkpoint(place: str) -> Path:
    """Download the uploaded `last/` of a repository; return its folder in the local cache.

    Raises:
        RunError: The repository cannot be read, or contains no uploaded `last/`.
    """
    name, hub = split_revision(place.removeprefix(PREFIX))
    try:
        folder = snapshot_download(name, revision=hub.get("revision"), allow_patterns=f"{LAST}/*")
    except Exception as error:  # many types, from the network, the client or the Hub
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(f"--restore_dir {place}: cannot be downloaded ({reason})") from None
    checkpoint = Path(folder) / LAST
    if not checkpoint.is_dir():
        raise RunError(
            f"--restore_dir {place}: the repository has no {LAST}/ with the optimizer state; "
            "expected a repository of a run with --hub_strategy checkpoint"
        )
    return checkpoint
