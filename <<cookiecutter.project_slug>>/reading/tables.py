"""Read the columns of a data file, or of many, as text."""

import glob
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from errors import DataError

from .faults import first_fault, header, records

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
# name:split, or name:configuration:split, of a data set on the Hub or in a folder
NAMED = re.compile(r"(?P<name>[^:]{2,}?)(:(?P<config>[^:\[\]]+))?:(?P<split>\w+(\[.*\])?)")
Source = str | Path | Sequence[str | Path]


def read_table(source: Source, columns: list[str], lists: Sequence[str] = ()) -> datasets.Dataset:
    """Read the named columns of a file; numbers become their decimal text, classes their names.

    The format follows from the ending of the file's name. The table is memory-mapped from the
    cache of `datasets`, so it may be larger than memory.

    Args:
        source: A file, a folder of files, a pattern such as `part-*.jsonl`, or several of these;
            an address, `hf://datasets/...`; or a data set with its split, `stanfordnlp/imdb:train`
            or `nyu-mll/glue:sst2:train`, on the Hub or in a folder.
        lists: Columns that may hold lists of texts.

    Raises:
        DataError: no such file, an unknown format, an empty or broken file, text that is not
            UTF-8, a missing column, or a row without a value.
    """
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    if named := _named(source):
        try:
            table = datasets.load_dataset(named["name"], named["config"], split=named["split"])
        except Exception as error:  # of many kinds, of the network's and of the data's
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(f"{source}: cannot be read ({reason})") from None
    else:
        table = _read_files(files_of(source))
    if len(table) == 0:
        raise DataError(f"{source}: no rows; expected at least one example")
    return _as_text(source, table, columns, lists)


def _named(source: Source) -> re.Match | None:
    if not isinstance(source, (str, Path)) or Path(source).exists():
        return None
    return NAMED.fullmatch(str(source))


def files_of(source: Source) -> list[str]:
    """List the files that are meant: all of one format, none of them empty.

    Raises:
        DataError: there are none, or others.
    """
    endings = ", ".join(FORMATS)
    files: list[str] = []
    for part in [source] if isinstance(source, (str, Path)) else source:
        found = [str(part)]
        if Path(part).is_dir():
            inside = Path(part).rglob("*")
            found = sorted(str(file) for file in inside if file.suffix in FORMATS)
        elif glob.has_magic(str(part)) and not Path(part).exists() and "://" not in str(part):
            found = sorted(glob.glob(str(part), recursive=True))
        if not found:
            raise DataError(f"{part}: no such files there; expected {endings} files")
        files += found
    for file in files:
        if "://" not in file and not Path(file).is_file():
            raise DataError(f"{file}: no such file; expected a {endings} file")
        if Path(file).suffix not in FORMATS:
            raise DataError(f"{file}: unknown format; expected a {endings} file")
        if Path(file).suffix != Path(files[0]).suffix:
            raise DataError(f"{file}: another format than {files[0]}; expected files of one")
        if "://" not in file and Path(file).stat().st_size == 0:
            raise DataError(f"{file}: the file is empty; expected at least one example")
    return files


def is_plain_text(source: Source) -> bool:
    """Whether it is text without rows of its own."""
    return not _named(source) and Path(files_of(source)[0]).suffix == ".txt"


def _read_files(files: list[str]) -> datasets.Dataset:
    builder, options = FORMATS[Path(files[0]).suffix]
    try:
        if builder == "csv" and "://" not in files[0]:  # and "1e5" as a number
            names = header(Path(files[0]))
            options = {**options, "features": datasets.Features(dict.fromkeys(names, TEXT))}
        return datasets.load_dataset(builder, data_files=files, split="train", **options)
    except Exception as error:
        faults = [first_fault(Path(file), error) for file in files if "://" not in file]
        named = [fault for fault in faults if re.match(r".*?:\d+: ", str(fault))]
        raise [*named, *faults, DataError(f"{files[0]}: cannot be read ({error!r})")][0] from None


def row_name(source: Source, row: int) -> str:
    """Say where a row, counted from 0, stands: `train.jsonl:12`, or `train.parquet (row 12)`."""
    count = 0
    for file in [] if _named(source) else files_of(source):
        for line in records(Path(file)) if "://" not in file else ():
            if count == row:
                return f"{file}:{line}"
            count += 1
    return f"{source} (row {row + 1})"


def row_with(source: Source, table: datasets.Dataset, column: str, value: str | None) -> str:
    """Say where a value stands first, alone or in a list."""
    cells = (cell if isinstance(cell, list) else [cell] for cell in table[column])
    return row_name(source, next(row for row, cell in enumerate(cells) if value in cell))


def distinct(table: datasets.Dataset, column: str) -> tuple[list[str], bool]:
    """The different texts in a column, whole numbers by size; and whether it holds lists."""
    values = table.data.column(column)
    is_list = pa.types.is_nested(values.type)
    found = pc.unique(pc.list_flatten(values) if is_list else values).to_pylist()
    return sorted(
        found, key=lambda n: (int(n) if n.isdecimal() and len(n) < 20 else -1, n)
    ), is_list


def _as_text(
    source: Source, table: datasets.Dataset, columns: list[str], lists: Sequence[str]
) -> datasets.Dataset:
    for name in columns:
        if name not in table.column_names:
            found = ", ".join(map(repr, table.column_names))
            raise DataError(f"{row_name(source, 0)}: no column {name!r}; the file has {found}")
    table = table.select_columns(columns)
    for name in columns:
        values = table.data.column(name)
        if values.null_count:
            row = pc.index(pc.is_null(values), True).as_py()
            raise DataError(f"{row_name(source, row)}: no value for {name!r}; expected text")
        feature = table.features[name]
        if getattr(feature, "dtype", None) in ("string", "large_string"):
            continue
        inner = getattr(feature, "feature", None) if name in lists else None
        if inner is not None and pc.list_flatten(values).null_count:
            where = row_with(source, table, name, None)
            raise DataError(f"{where}: a list in {name!r} holds null; expected text")
        if isinstance(inner or feature, datasets.ClassLabel):
            table = _with_names(source, table, name, inner or feature)
        elif isinstance(inner, datasets.Value):
            table = table.cast_column(name, datasets.List(TEXT))
        elif not isinstance(feature, datasets.Value):
            raise DataError(f"{source}: column {name!r} holds more than one kind; expected text")
        else:
            table = table.cast_column(name, TEXT)
    return table


def _with_names(
    source: Source, table: datasets.Dataset, column: str, names: datasets.ClassLabel
) -> datasets.Dataset:
    values = table.data.column(column)
    is_list = pa.types.is_nested(values.type)
    row = pc.index(pc.less(pc.list_flatten(values) if is_list else values, 0), True).as_py()
    if row >= 0:
        where = source if is_list else row_name(source, row)
        raise DataError(f"{where}: no label; expected one of {names.names}")
    kind = datasets.List(TEXT) if is_list else TEXT
    return table.map(
        lambda batch: {column: [names.int2str(cell) for cell in batch[column]]},
        batched=True,
        features=datasets.Features({**table.features, column: kind}),
    )
