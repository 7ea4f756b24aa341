"""One run in a folder at a time."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TextIO

from errors import RunError

from .peers import Peers

FILE_NAME = ".lock"


@contextmanager
def locked(peers: Peers, outdir: Path) -> Iterator[None]:
    """Keep other runs out of a folder, which is made if need be, and goes if nothing came of it.

    The kernel holds the lock, and lets go of it with the process: a run that was killed is in
    nobody's way.

    Raises:
        RunError: another run is at work there, or the folder cannot be written to.
    """
    held: list[TextIO] = []
    peers.main_does(lambda: held.append(_lock(outdir)))
    try:
        yield
    finally:
        for file in held:
            with suppress(OSError):  # of what remains, or is not there any more
                (outdir / FILE_NAME).unlink()
                outdir.rmdir()
            file.close()


def _lock(outdir: Path) -> TextIO:
    try:
        outdir.mkdir(parents=True, exist_ok=True)
        file = (outdir / FILE_NAME).open("a+", encoding="utf-8")
    except OSError as error:
        raise RunError(f"{outdir}: cannot be written to ({error.strerror})") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise RunError(f"{outdir}: {file.read()} is at work here; wait for it to end") from None
    except OSError:  # a file system without locks
        pass
    if os.fstat(file.fileno()).st_nlink == 0:
        return _lock(outdir)  # the run before has ended in between, and taken its file away
    file.truncate(0)
    now = datetime.now().isoformat(" ", "minutes")
    file.write(f"the run of {now}, process {os.getpid()} on {socket.gethostname()},")
    file.flush()
    return file
