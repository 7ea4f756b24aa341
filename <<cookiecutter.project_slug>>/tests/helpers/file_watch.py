"""Call a function before file operations by which Python code changes or flushes a folder."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

WRITING = {"os.mkdir", "os.rename", "os.symlink", "os.remove", "os.rmdir", "fsync"}
Action = Callable[[str, tuple], None]


class _Watch:
    """The audit hook of this process; Python cannot remove an audit hook.

    Python has no audit event for `os.fsync`, so `watching` replaces `os.fsync` with a function that
    calls the hook.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.on_write: Action | None = None
        self.fsync = os.fsync
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple) -> None:
        if self.on_write is None:
            return
        if event == "open":
            if not isinstance(arguments[2], int) or not arguments[2] & (os.O_WRONLY | os.O_RDWR):
                return
        elif event not in WRITING:
            return
        # For a symbolic link, the first argument is its target; the second one is its own path.
        path = arguments[1] if event == "os.symlink" else arguments[0]
        if str(self.folder) in str(path) or event in ("os.remove", "os.rmdir"):
            self.on_write(event, arguments)


_WATCH = _Watch()


@contextmanager
def watching(folder: Path, on_write: Action) -> Iterator[None]:
    """Call `on_write(event, arguments)` before operations that change or flush a folder.

    These are opening a file for writing and the events in `WRITING`, if the path that is changed
    (for a renamed file, its old path) contains the path of the folder. Removals in all other
    folders are also reported, since the path of a removal may be relative. Code that is not Python,
    such as safetensors, is not observed. If `on_write` raises an exception, the operation fails
    with this exception.
    """

    def fsync(descriptor: int) -> None:
        _WATCH.hook("fsync", (os.readlink(f"/proc/self/fd/{descriptor}"),))
        _WATCH.fsync(descriptor)

    _WATCH.folder = folder
    _WATCH.on_write = on_write
    os.fsync = fsync  # type: ignore[assignment]
    try:
        yield
    finally:
        _WATCH.on_write = None
        os.fsync = _WATCH.fsync
