"""List and fetch remote files."""

import glob
import uuid
import zlib
from pathlib import Path

import fsspec

from errors import DataError

from .files import is_remote


def list_remote(pattern: str) -> list[str]:
    """Expand a remote pattern, such as `hf://datasets/org/name/*.parquet`.

    Args:
        pattern: A URL with wildcards. A URL without wildcards or a local path is returned as the
            only item of the list.

    Raises:
        DataError: The pattern cannot be listed, or no file matches.
    """
    if not is_remote(pattern) or not glob.has_magic(pattern):
        return [pattern]
    try:
        system, path = fsspec.core.url_to_fs(pattern)
        files = sorted(map(system.unstrip_protocol, system.glob(path)))
    except Exception as error:  # each protocol has its own errors
        raise DataError(f"{pattern}: cannot be read ({error})") from None
    if not files:
        raise DataError(f"{pattern}: no file matches; expected at least one")
    return files


def fetch(file: str, folder: Path) -> str:
    """Download a remote file into `folder`, unless it is there already; return the local path.

    Args:
        file: URL of the file. A local path is returned unchanged.

    Raises:
        DataError: The file cannot be fetched.
    """
    if not is_remote(file):
        return file
    copy = folder / "files" / f"{zlib.crc32(file.encode()):08x}-{file.rpartition('/')[2]}"
    if copy.exists():
        return str(copy)
    copy.parent.mkdir(parents=True, exist_ok=True)
    part = Path(f"{copy}.{uuid.uuid4().hex}")  # a unique name: several machines may share `folder`
    try:
        system, path = fsspec.core.url_to_fs(file)
        system.get(path, str(part))
    except Exception as error:  # each protocol has its own errors
        raise DataError(f"{file}: cannot be fetched ({error})") from None
    part.replace(copy)
    return str(copy)
