"""Open data files, local or remote, compressed or not; identify their content."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa

from errors import DataError

FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")


def _open_zstd(stream: BinaryIO) -> Any:
    # The standard library has no zstd before Python 3.14.
    return pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd")


DECOMPRESSORS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstd,
}
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException)


def is_remote(file: str) -> bool:
    """Return whether a file is given as a URL, such as `hf://...` or `https://...`."""
    return "://" in file


def format_of(file: str | Path) -> str:
    """Return the format, from the file extension: `.jsonl` for `Train.JSONL.gz`; "" if unknown."""
    path = PurePosixPath(str(file).lower())
    if path.suffix in DECOMPRESSORS and path.with_suffix("").suffix != ".parquet":
        path = path.with_suffix("")
    return path.suffix if path.suffix in FORMATS else ""


@contextmanager
def open_file(file: str) -> Iterator[io.BufferedReader]:
    """Open a local or remote file for reading bytes, decompressed according to its extension.

    Raises:
        DataError: The file cannot be read, or its compressed data are damaged.
    """
    decompress = DECOMPRESSORS.get(PurePosixPath(file).suffix.lower())
    expected = Exception if is_remote(file) else DAMAGED  # each protocol has its own errors
    try:
        with fsspec.open(file, "rb").open() if is_remote(file) else open(file, "rb") as stream:
            content = decompress(stream) if decompress else stream
            yield content if isinstance(content, io.BufferedReader) else io.BufferedReader(content)
    except DataError:
        raise
    except expected as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{file}: cannot be read ({reason})") from None


def identify_file(file: str) -> str:
    """Return a string that changes when the content of the file changes.

    Raises:
        DataError: There is no such remote file, or it cannot be reached.
        OSError: There is no such local file, or it cannot be accessed.
    """
    if not is_remote(file):
        stat = Path(file).stat()
        # A file that replaced another one may have the same size and time, but not the same inode.
        return repr((str(Path(file).resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino))
    try:
        system, path = fsspec.core.url_to_fs(file)
        return file + repr(sorted(system.info(path).items()))
    except Exception as error:  # each protocol has its own errors
        raise DataError(f"{file}: cannot be read ({error})") from None
