"""Find the line of a file that could not be read: the libraries that read in blocks do not say."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from errors import DataError

csv.field_size_limit(2**31 - 1)  # a cell may hold a whole document


def first_fault(path: Path, error: Exception) -> DataError:
    """Name the first faulty line of a file whose reading ended in `error`."""
    try:
        for _ in records(path):
            pass
    except DataError as fault:
        return fault
    reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
    return DataError(f"{path}: cannot be read as {path.suffix[1:]} ({reason[0]})")


def records(path: Path) -> Iterator[int]:
    """Yield the line on which each record of a text format begins or, in CSV, ends.

    Raises:
        DataError: at the first line that is not UTF-8, not JSON, or wider than the header.
    """
    if path.suffix == ".jsonl":
        for number, line in _lines(path):
            if line.strip():
                _check_object(path, number, line)
                yield number
    elif path.suffix in (".csv", ".tsv"):
        yield from _csv_records(path)
    elif path.suffix == ".txt":
        for number, _ in _lines(path):
            yield number


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield number, line.decode("utf-8")
            except UnicodeDecodeError:
                raise DataError(f"{path}:{number}: not UTF-8; save the file as UTF-8") from None


def _check_object(path: Path, number: int, line: str) -> None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as reason:
        raise DataError(f"{path}:{number}: broken JSON ({reason}); expected one object") from None
    if not isinstance(row, dict):
        raise DataError(f"{path}:{number}: a JSON {type(row).__name__}; expected one object")


def header(path: Path) -> list[str]:
    """The column names of a CSV or TSV file.

    Raises:
        DataError: the first row is wider: pandas would take its first cells for row names.
    """
    rows = _csv_rows(path)
    names: list[str] = next(rows, [])
    first: list[str] = next(rows, [])
    if len(first) > len(names):
        raise DataError(f"{path}: {len(first)} cells in the first row, {len(names)} in the header")
    return names


def _csv_rows(path: Path):
    lines = (line.removeprefix("\ufeff") for _, line in _lines(path))
    return csv.reader(lines, delimiter="\t" if path.suffix == ".tsv" else ",")


def _csv_records(path: Path) -> Iterator[int]:
    rows = _csv_rows(path)
    try:
        width = len(next(rows, []))
        for row in rows:
            if len(row) > width:
                raise DataError(f"{path}:{rows.line_num}: {len(row)} cells; expected {width}")
            if row:
                yield rows.line_num
    except csv.Error as reason:
        raise DataError(f"{path}:{rows.line_num}: broken CSV ({reason})") from None
