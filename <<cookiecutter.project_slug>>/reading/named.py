"""Resolve a source to data files, or to a table that `datasets` loads."""

import dataclasses
from pathlib import Path
from typing import Any

import datasets

from errors import DataError

from .files import identify_file
from .sources import Source, expand_user, files_of_split, list_files, parse_name, saved_by


@dataclasses.dataclass
class Resolved:
    """The content of a source: files or a table.

    Attributes:
        files: Data files to read; empty if there is a table.
        table: Table whose columns have types; None if there are files.
        is_inferred: Whether `datasets` has inferred the types of the table from JSON.
        split: Part of the rows of the files, such as `train[:10]`; None for all rows.
    """

    files: list[str] = dataclasses.field(default_factory=list)
    table: datasets.Dataset | None = None
    is_inferred: bool = False
    split: str | None = None

    def identify(self) -> list[str]:
        """Return strings that change when the content changes."""
        if self.table is None:
            return [identify_file(file) for file in self.files]
        files = [file["filename"] for file in self.table.cache_files]
        return [self.table._fingerprint, *map(identify_file, files)]

    def select(self, source: Source, rows: datasets.Dataset) -> datasets.Dataset:
        """Select the rows of the split.

        Raises:
            DataError: The slice of the split is invalid.
        """
        return rows if self.split is None else _attempt(source, _select, rows, self.split)


def resolve(source: Source) -> Resolved:
    """Find the files or the table of a source.

    Raises:
        DataError: The source is the folder of a saved `DatasetDict`, without a split; or `datasets`
            cannot read the source; or see `list_files` and `files_of_split`.
    """
    if isinstance(source, (str, Path)) and (kind := saved_by(folder := expand_user(source))):
        if kind == "Dataset":
            return Resolved(table=_attempt(source, datasets.load_from_disk, str(folder)))
        splits = ", ".join(_attempt(source, datasets.load_from_disk, str(folder)))
        raise DataError(f"{source}: has the splits {splits}; expected one, as in {source}:train")
    if (match := parse_name(source)) is None:
        return Resolved(files=list_files(source))
    name, config, split = match.group("name", "config", "split")
    folder = expand_user(name)
    if saved_by(folder):
        saved = _attempt(source, datasets.load_from_disk, str(folder))
        return Resolved(table=_attempt(source, _select_split, saved, split))
    whole = split.partition("[")[0]
    if folder.is_dir() and config is None and not (folder / "README.md").is_file():
        files = files_of_split(folder, whole)
        return Resolved(files=files, split=None if split == whole else split)
    name = str(folder) if folder.is_dir() else name
    table = _attempt(source, datasets.load_dataset, name, config, split=split)
    return Resolved(table=table, is_inferred=table.info.builder_name == "json")


def _attempt(source: Source, load: Any, *args: Any, **options: Any) -> Any:
    try:
        return load(*args, **options)
    except Exception as error:  # network errors and data errors of many types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{source}: cannot be read ({reason})") from None


def _select_split(saved: datasets.Dataset | datasets.DatasetDict, split: str) -> datasets.Dataset:
    if isinstance(saved, datasets.DatasetDict):
        return _select(saved[split.partition("[")[0]], split)
    return _select(saved, split, str(saved.split or "train"))


def _select(rows: datasets.Dataset, split: str, name: str | None = None) -> datasets.Dataset:
    """Select a part of the rows.

    Args:
        split: The part to select, for example `train[:10%]`.
        name: Name of the split that `rows` contains. Default: the name in `split`.
    """
    counts = {name or split.partition("[")[0]: len(rows)}
    (part,) = datasets.ReadInstruction.from_spec(split).to_absolute(counts)
    chosen = range(part.from_ or 0, len(rows) if part.to is None else part.to)
    return rows.select(chosen or [])  # select() rejects an empty range at the end of the rows
