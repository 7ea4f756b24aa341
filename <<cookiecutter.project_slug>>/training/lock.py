"""Lock an output folder for one run."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from errors import RunError

from .distributed import RankGroup

LOCK_FILE = ".lock"


@contextmanager
def lock_folder(group: RankGroup, outdir: Path) -> Iterator[None]:
    """Hold the lock of a folder; create the folder if missing, remove it if it stays empty.

    The operating system releases the lock when the process ends, even by `kill -9`.

    Raises:
        RunError: Another run holds the lock, or the folder is not writable.
    """
    lock = FileLock(outdir / LOCK_FILE, timeout=0)
    group.on_main(lambda: _acquire(lock, outdir))
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):  # the folder may be gone or hold results
                (outdir / LOCK_FILE).unlink()
                outdir.rmdir()
            lock.release()


def _acquire(lock: FileLock, outdir: Path) -> None:
    try:
        outdir.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise RunError(f"{outdir}: another run is using this folder; expected it to end") from None
    except OSError as error:
        raise RunError(f"{outdir}: not writable ({error.strerror})") from None
