"""Write JSON lines block by block, so that an interrupted run can be resumed."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from errors import RunError

from .atomic import flush, write_file


class OutputFile:
    """A file of JSON lines that is renamed to its final name when it is complete.

    Until then, the lines are in NAME.partial. NAME.partial.json contains the identity, the number
    of complete lines and their size in bytes. NAME.partial.json is replaced atomically after each
    block has been flushed to the disk.

    Args:
        identity: Hash of all inputs on which the lines depend. A partial file with another identity
            is overwritten.

    Attributes:
        partial: Path of the incomplete file.
        lines: Number of complete lines.
    """

    def __init__(self, path: Path, identity: str):
        self.path = path
        self.identity = identity
        self.lines = 0
        self.partial = path.with_name(f"{path.name}.partial")
        self._position = path.with_name(f"{path.name}.partial.json")
        self._size = 0

    def open(self) -> None:
        """Continue the partial file of an interrupted process, or start a new file.

        Raises:
            RunError: The file cannot be written.
        """
        with self._writing():
            found = self._read_position()
            is_same = found.get("identity") == self.identity
            if is_same:
                self.lines = found["lines"]
                self._size = found["bytes"]
            with self.partial.open("ab") as file:
                # Remove an incomplete block, or all lines of another identity.
                file.truncate(self._size)
        if is_same:
            print(f"{self.partial}: continues after {self.lines:,} rows")
        elif found:
            print(
                f"{self.partial}: input, checkpoint, arguments or code have changed; starting again"
            )

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Append a block of rows, one line per row, and flush the block to the disk.

        Raises:
            RunError: The file cannot be written.
        """
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with self._writing():
            content = lines.encode("utf-8")
            with self.partial.open("ab") as file:
                file.write(content)
            flush(self.partial)
            self.lines += len(rows)
            self._size += len(content)
            position = {"identity": self.identity, "lines": self.lines, "bytes": self._size}
            write_file(self._position, json.dumps(position))

    def publish(self) -> None:
        """Rename the complete file to its final name, replacing an older file.

        Raises:
            RunError: The file cannot be written.
        """
        with self._writing():
            os.replace(self.partial, self.path)
            flush(self.path.parent)
            self._position.unlink(missing_ok=True)

    def _read_position(self) -> dict[str, Any]:
        """Return the content of NAME.partial.json.

        Return {} if the file is missing or invalid, or if NAME.partial is missing or too short.
        """
        try:
            found = json.loads(self._position.read_text(encoding="utf-8"))
            is_whole = self.partial.stat().st_size >= found["bytes"] and "lines" in found
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return {}
        return found if is_whole else {}

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{self.path}: cannot be written ({error.strerror}); the same command continues "
                f"after {self.lines:,} rows"
            ) from error
