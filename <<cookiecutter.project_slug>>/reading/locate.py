"""Locate rows in data files, for error messages and notes."""

from collections.abc import Iterator
from itertools import islice

import datasets
import pyarrow.parquet as pq

from .files import format_of, open_file
from .named import resolve
from .records import read_records
from .sources import Source


def locate_row(source: Source, row: int) -> str:
    """Return the place of a row, such as `train.jsonl:12` or `train.parquet (row 12)`.

    Args:
        row: 0-based index of the row. Lines and rows in the place are 1-based.
    """
    resolved = resolve(source)
    if resolved.table is None and resolved.split is None:
        return next(islice(_places(resolved.files), row, None))
    return f"{source} (row {row + 1})"


def _places(files: list[str]) -> Iterator[str]:
    for file in files:
        if format_of(file) == ".parquet":
            with open_file(file) as stream:
                count = pq.ParquetFile(stream).metadata.num_rows
            yield from (f"{file} (row {row + 1})" for row in range(count))
        else:
            yield from (f"{file}:{line}" for line, _ in read_records(file))


def locate_value(source: Source, table: datasets.Dataset, column: str, value: str) -> str:
    """Return the place of the first row whose cell is `value`, or a list that contains `value`."""
    cells = (cell if isinstance(cell, list) else [cell] for cell in table[column])
    return locate_row(source, next(row for row, cell in enumerate(cells) if value in cell))
