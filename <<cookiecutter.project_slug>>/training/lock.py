"""Lock an output folder or file for one run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from errors import RunError

if TYPE_CHECKING:  # distributed.py imports torch, which sweep.py does not need
    from .distributed import RankGroup

LOCK_FILE = ".lock"


@contextmanager
def lock_folder(group: RankGroup, outdir: Path) -> Iterator[None]:
    """Hold the lock of a folder.

    Create the folder if it does not exist. At the end, remove the folder if it is empty.

    The operating system releases the lock when the process ends, even by `kill -9`.

    Raises:
        RunError: Another run holds the lock, or the folder is not writable.
    """
    lock = FileLock(outdir / LOCK_FILE, timeout=0)
    group.on_main(lambda: _acquire(lock, f"{outdir}: another run is using this folder"))
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):  # the folder may have been removed, or contain results
                (outdir / LOCK_FILE).unlink()
                outdir.rmdir()
            lock.release()


@contextmanager
def lock_file(group: RankGroup, path: Path) -> Iterator[None]:
    """Hold the lock of an output file; see `lock_folder`."""
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
    group.on_main(lambda: _acquire(lock, f"{path}: another process is writing this file"))
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):
                Path(lock.lock_file).unlink()
            lock.release()


def _acquire(lock: FileLock, message: str) -> None:
    folder = Path(lock.lock_file).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise RunError(f"{message}; wait until it has ended") from None
    except OSError as error:
        raise RunError(f"{folder}: not writable ({error.strerror})") from None
