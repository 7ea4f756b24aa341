"""Read the columns of a data file as text."""

import logging
from pathlib import Path

import datasets
import pyarrow.compute as pc

from .faults import DataError, first_fault, header, records

# Every CSV cell is text as it stands: pandas would read "NA" and "null" as nothing.
CSV = {"keep_default_na": False, "na_filter": False}
TEXT = datasets.Value("string")
FORMATS: dict[str, tuple[str, dict]] = {
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".csv": ("csv", CSV),
    ".tsv": ("csv", {**CSV, "sep": "\t"}),
    ".parquet": ("parquet", {}),
    ".txt": ("text", {"keep_linebreaks": True}),
}


def read_table(path: str | Path, columns: list[str]) -> datasets.Dataset:
    """Read the named columns of a file; numbers become their decimal text.

    The format follows from the ending of the file's name. The table is memory-mapped from the
    cache of `datasets`, so it may be larger than memory.

    Raises:
        DataError: no such file, an unknown format, an empty or broken file, text that is not
            UTF-8, a missing column, or a row without a value.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a {', '.join(FORMATS)} file")
    if path.suffix not in FORMATS:
        raise DataError(f"{path}: unknown format; expected a {', '.join(FORMATS)} file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; expected at least one example")
    builder, options = FORMATS[path.suffix]
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    try:
        if builder == "csv":  # and "1e5" as a number
            names = header(path)
            options = {**options, "features": datasets.Features(dict.fromkeys(names, TEXT))}
        table = datasets.load_dataset(builder, data_files=str(path), split="train", **options)
    except Exception as error:
        raise first_fault(path, error) from None
    if len(table) == 0:
        raise DataError(f"{path}: no rows; expected at least one example")
    return _as_text(path, table, columns)


def row_name(path: str | Path, row: int) -> str:
    """Say where a row, counted from 0, stands: `train.jsonl:12`, or `train.parquet (row 12)`."""
    for count, line in enumerate(records(Path(path))):
        if count == row:
            return f"{path}:{line}"
    return f"{path} (row {row + 1})"


def _as_text(path: Path, table: datasets.Dataset, columns: list[str]) -> datasets.Dataset:
    for name in columns:
        if name not in table.column_names:
            found = ", ".join(map(repr, table.column_names))
            raise DataError(f"{row_name(path, 0)}: no column {name!r}; the file has {found}")
    table = table.select_columns(columns)
    for name in columns:
        values = table.data.column(name)
        if values.null_count:
            row = pc.index(pc.is_null(values), True).as_py()
            raise DataError(f"{row_name(path, row)}: no value for {name!r}; expected text")
        feature = table.features[name]
        if getattr(feature, "dtype", None) in ("string", "large_string"):
            continue
        if not isinstance(feature, datasets.Value):
            raise DataError(f"{path}: column {name!r} holds more than one kind; expected text")
        table = table.cast_column(name, TEXT)
    return table
