"""Read Parquet files."""

from collections.abc import Iterator
from typing import BinaryIO

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from errors import DataError

from .columns import as_text
from .files import open_file

ROWS = 1000  # number of rows converted at a time


def read_parquet(
    file: str, columns: list[str], lists: list[str], nested: list[str]
) -> Iterator[pa.RecordBatch]:
    """Yield the named columns as text; see `columns.as_text`.

    Raises:
        DataError: The file cannot be read, or does not have exactly one column of each name; or
            see `columns.as_text`.
    """
    with open_file(file) as stream:
        parquet = _open(file, stream)
        features = _features(file, parquet.schema_arrow, columns)
        count = 0
        for batch in parquet.iter_batches(ROWS, columns=columns):
            table = pa.Table.from_batches([batch]).select(columns)
            first = count + 1
            yield as_text(table, features, lists, nested, lambda row: f"{file} (row {first + row})")  # noqa: B023
            count += len(batch)


def parquet_columns(file: str) -> list[str]:
    """Return the names of all columns of a file.

    Raises:
        DataError: The file cannot be read.
    """
    with open_file(file) as stream:
        return _open(file, stream).schema_arrow.names


def _open(file: str, stream: BinaryIO) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(stream)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{file}: cannot be read as parquet ({reason})") from None


def _features(file: str, schema: pa.Schema, columns: list[str]) -> datasets.Features:
    for name in columns:
        if (count := schema.names.count(name)) != 1:
            what = f"{count} columns" if count else "no column"
            found = ", ".join(map(repr, schema.names))
            raise DataError(f"{file}: {what} {name!r}; the file has {found}")
    # The metadata contain the types that `datasets` wrote into the file, including class names.
    wanted = pa.schema([schema.field(name) for name in columns], schema.metadata)
    return datasets.Features.from_arrow_schema(wanted)
