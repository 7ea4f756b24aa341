"""Collect the rows of text formats into Arrow batches of text."""

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from errors import DataError

from .records import Number, read_records

# Approximate maximum numbers of rows and characters in a batch.
ROWS = 1000
CHARACTERS = 2**24
WORDS = {True: "true", False: "false"}  # as in JSON


def read_texts(
    files: list[str], columns: list[str], lists: list[str], nested: list[str]
) -> Iterator[pa.RecordBatch]:
    """Yield the named columns of files in a text format, as text or lists of texts.

    Args:
        lists: Columns that may hold lists of texts.
        nested: Columns that may hold any value; values are returned as JSON.

    Raises:
        DataError: A value is missing, or cannot be read as text or JSON (the message includes the
            line number); or see `read_records`.
    """
    batch = _Batch(columns, lists, nested)
    for file in files:
        is_first = True
        for line, row in read_records(file, columns):
            batch.add(f"{file}:{line}", row, is_first)
            is_first = False
            if batch.is_full:
                yield batch.take()
    yield batch.take()


class _Batch:
    """Collects rows for one Arrow batch."""

    def __init__(self, columns: list[str], lists: list[str], nested: list[str]):
        self._columns = columns
        self._lists = lists
        self._nested = nested
        self._holds_lists: dict[str, bool] = {}  # for each column, whether the first row has a list
        self._clear()

    def _clear(self) -> None:
        self._values: dict[str, list] = {name: [] for name in self._columns}
        self._places: list[str] = []
        self._size = 0

    @property
    def is_full(self) -> bool:
        return len(self._places) >= ROWS or self._size >= CHARACTERS

    def add(self, place: str, row: dict[str, Any], is_first: bool) -> None:
        """Add a row.

        Args:
            is_first: Whether this is the first row of its file. If the first row lacks a column,
                the error says that the file lacks the column.
        """
        for name in self._columns:
            value = row.get(name)
            if value is None:
                raise _missing(place, row, name, is_first)
            text = self._as_text(place, name, value)
            self._values[name].append(text)
            self._size += len(text) if isinstance(text, str) else sum(map(len, text))
        self._places.append(place)

    def _as_text(self, place: str, name: str, value: Any) -> str | list[str]:
        if isinstance(value, bool):
            value = WORDS[value]
        if name in self._nested:
            return _as_json(place, name, value)
        is_list = isinstance(value, list) and name in self._lists
        expects_list = self._holds_lists.setdefault(name, is_list)
        if isinstance(value, list) and expects_list:
            return [_item_as_text(place, name, item) for item in value]
        if isinstance(value, str) and not expects_list:
            return value
        expected = "a list" if expects_list else "text"
        raise DataError(f"{place}: {name!r} holds {_kind(value)}; expected {expected}")

    def take(self) -> pa.RecordBatch:
        """Return the collected rows, and start an empty batch."""
        types = {
            name: pa.list_(pa.string()) if self._holds_lists.get(name) else pa.string()
            for name in self._columns
        }
        try:
            arrays = [pa.array(values, types[name]) for name, values in self._values.items()]
        except UnicodeEncodeError:
            raise self._surrogate() from None
        self._clear()
        return pa.RecordBatch.from_arrays(arrays, names=self._columns)

    def _surrogate(self) -> DataError:
        for row, place in enumerate(self._places):
            for name, values in self._values.items():
                try:
                    "".join(values[row]).encode()
                except UnicodeEncodeError as error:
                    found = error.object[error.start]
                    return DataError(
                        f"{place}: {name!r} holds {found!a}; expected a valid character"
                    )
        raise AssertionError("no surrogate")


def _as_json(place: str, name: str, value: Any) -> str:
    """Format a value as JSON. A number becomes a string, unless it is in a list or an object."""
    try:
        inner = value if isinstance(value, str) else _with_numbers(value)
        return json.dumps(inner, ensure_ascii=False)
    except RecursionError:
        raise DataError(f"{place}: {name!r} is nested too deeply; expected fewer levels") from None


def _with_numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    if isinstance(value, dict):
        return {name: _with_numbers(item) for name, item in value.items()}
    return float(value) if isinstance(value, Number) else value


def _item_as_text(place: str, name: str, item: Any) -> str:
    if isinstance(item, bool):
        return WORDS[item]
    if isinstance(item, str):
        return item
    raise DataError(f"{place}: a list in {name!r} holds {_kind(item)}; expected text")


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, list):
        return "a list"
    return "an object" if isinstance(value, dict) else "text"


def _missing(place: str, row: dict[str, Any], name: str, is_first: bool) -> DataError:
    if not is_first or name in row:
        return DataError(f"{place}: no value for {name!r}; expected one")
    found = ", ".join(map(repr, row)) or "none"
    return DataError(f"{place}: no column {name!r}; the file has {found}")
