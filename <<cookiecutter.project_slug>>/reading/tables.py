"""Read columns of one or several data files as text."""

import logging
import uuid
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets.table import MemoryMappedTable

from errors import DataError

from .columns import as_text
from .files import format_of
from .identity import hash_source, hash_values
from .named import Resolved, resolve
from .parquet import ROWS, parquet_columns, read_parquet
from .records import read_records
from .sources import Source, expand_user, parse_name
from .texts import read_texts


def read_table(
    source: Source, columns: list[str], lists: Sequence[str] = (), nested: Sequence[str] = ()
) -> datasets.Dataset:
    """Read the given columns of a source as text; other columns are ignored.

    A JSON string is read as its value, and a JSON number as its literal text: `1.0` is not `1`.
    `true` and `false` are read as these words. In CSV, an empty cell is a missing value, and an
    empty text is written `""`. TSV has no quoting, and an empty cell is a missing value. In
    Parquet, a float is read as its `repr`, a class label as its name, and a date in ISO form. A
    missing value raises an error.

    The format is determined by the file extension, in lower or upper case. Text formats may be
    compressed (.gz, .bz2, .xz, .zst). The text is kept in the cache of `datasets`. The cache key
    depends on the path, size, time and inode of each local file, on the arguments, and on the code
    of this module and its imports. The table is memory-mapped, so it may be larger than memory.

    Args:
        source: A file, a folder of files, a pattern such as `part-*.jsonl`, or several of these;
            a URL such as `hf://datasets/...`; a data set with its split, on the Hub or in a folder,
            such as `stanfordnlp/imdb:train` or `nyu-mll/glue:sst2:train`; or a folder written by
            `save_to_disk`, with a split if a `DatasetDict` was saved.
        lists: Columns that may hold lists of texts.
        nested: Columns that may hold any value, such as a list of objects. Values are returned as
            JSON, so that the text `a` becomes `"a"`.

    Raises:
        DataError: See `resolve`; or a file is broken or not UTF-8; there are no rows; a column is
            missing, occurs twice, or holds lists in some files only; a row lacks a value, or has a
            value that cannot be read as text; or the cache cannot be written.
    """
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    lists = [name for name in columns if name in lists]
    nested = [name for name in columns if name in nested]
    resolved = resolve(source)
    batches = _read_batches(source, resolved, columns, lists, nested)
    key = hash_values(hash_source(__file__, "reading"), resolved.identify(), columns, lists, nested)
    table = resolved.select(source, _cached(source, key, batches))
    if len(table) == 0:
        raise DataError(f"{source}: no rows; expected at least one example")
    return table


def column_names(source: Source) -> list[str]:
    """Return the names of all columns or, in text formats, those of the first row.

    Raises:
        DataError: The source cannot be read.
    """
    resolved = resolve(source)
    if resolved.table is not None:
        return resolved.table.column_names
    file = resolved.files[0]
    if format_of(file) == ".parquet":
        return parquet_columns(file)
    return [name for _, row in islice(read_records(file), 1) for name in row]


def read_first_row(source: Source, columns: list[str], lists: Sequence[str] = ()) -> dict[str, Any]:
    """Return the first row as `read_table` would, without reading the full source.

    For files in a folder, a slice of the split, such as `[10:]`, is ignored.

    Raises:
        DataError: See `read_table`.
    """
    lists = [name for name in columns if name in lists]
    batches = _read_batches(source, resolve(source), columns, lists, [])
    if (first := next(batches, None)) is None or len(first) == 0:
        raise DataError(f"{source}: no rows; expected at least one example")
    return first.slice(0, 1).to_pylist()[0]


def is_plain_text(source: Source) -> bool:
    """Return whether the source consists of .txt files, whose rows are lines of one document."""
    match = parse_name(source)
    if match and not expand_user(match["name"]).is_dir():
        return False  # a data set on the Hub
    files = resolve(source).files
    return bool(files) and format_of(files[0]) == ".txt"


def distinct(table: datasets.Dataset, column: str) -> tuple[list[str], bool]:
    """Return the distinct texts of a column, and whether its cells are lists.

    The texts are sorted: first those that do not consist of digits, then numbers by their value.
    """
    values = table.data.column(column)
    is_list = pa.types.is_nested(values.type)
    found = pc.unique(pc.list_flatten(values) if is_list else values).to_pylist()
    return sorted(found, key=_sort_key), is_list


def _sort_key(text: str) -> tuple[int, str]:
    is_whole = text.isdecimal() and len(text) < 20
    return (int(text) if is_whole else -1, text)


def _read_batches(
    source: Source, resolved: Resolved, columns: list[str], lists: list[str], nested: list[str]
) -> Iterator[pa.RecordBatch]:
    if resolved.table is not None:
        return _read_typed(source, resolved, columns, lists, nested)
    if format_of(resolved.files[0]) == ".parquet":
        return chain.from_iterable(
            read_parquet(file, columns, lists, nested) for file in resolved.files
        )
    return read_texts(resolved.files, columns, lists, nested)


def _read_typed(
    source: Source, resolved: Resolved, columns: list[str], lists: list[str], nested: list[str]
) -> Iterator[pa.RecordBatch]:
    table = resolved.table
    assert table is not None
    for name in columns:
        if name not in table.column_names:
            found = ", ".join(map(repr, table.column_names))
            raise DataError(f"{source}: no column {name!r}; the data set has {found}")
        kind = table.data.schema.field(name).type
        if resolved.is_inferred and pa.types.is_temporal(kind):
            # `datasets` does not keep the original text of dates.
            sentence = f"{source}: {name!r} was read as {kind}; expected the URL of the files"
            raise DataError(f"{sentence}, such as hf://datasets/org/name/train.jsonl")
    rows = table.select_columns(columns).with_format("arrow")
    first = 1
    for part in rows.iter(ROWS):
        yield as_text(
            part,
            table.features,
            lists,
            nested,
            lambda row: f"{source} (row {first + row})",  # noqa: B023
        )
        first += len(part)


def _cached(source: Source, key: str, batches: Iterator[pa.RecordBatch]) -> datasets.Dataset:
    path = Path(datasets.config.HF_DATASETS_CACHE, "text", f"{key}.arrow")
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(source, path, batches)
        except OSError as error:
            sentence = f"{path.parent}: cannot be written ({error}); set HF_HOME to another folder"
            raise DataError(sentence) from None
    return datasets.Dataset(MemoryMappedTable.from_file(str(path)), fingerprint=key)


def _write(source: Source, path: Path, batches: Iterator[pa.RecordBatch]) -> None:
    if (first := next(batches, None)) is None:
        raise DataError(f"{source}: no rows; expected at least one example")
    part = Path(f"{path}.{uuid.uuid4().hex}")  # a unique name: other processes may write this table
    try:
        with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_stream(sink, first.schema) as writer:
            for batch in chain([first], batches):
                writer.write_batch(_alike(source, batch, first.schema))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _alike(source: Source, batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    if batch.schema != schema:
        raise DataError(
            f"{source}: a column holds lists in some files, and texts in others; expected lists in "
            "all files or in none"
        )
    return batch
