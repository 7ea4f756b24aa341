"""Read the rows of text formats one by one, each with the number of its first line."""

import codecs
import csv
import json
import re
from collections.abc import Callable, Collection, Iterator
from io import BufferedReader
from itertools import chain
from typing import Any

from errors import DataError

from .files import format_of, open_file

csv.field_size_limit(2**31 - 1)  # a cell may contain a full document


class Number(str):
    """A JSON number, as its literal text."""


def _as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a dict from the pairs of a JSON object.

    Raises:
        ValueError: A key occurs twice. `dict` would keep only its last value.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{repeated!r} occurs twice in an object")
    return values


# Numbers keep their literal text: 1.10 is not 1.1, and a long integer is exact. NaN and Infinity
# are not valid JSON. They are read as missing values, since Python writes NaN for a missing number.
DECODER = json.JSONDecoder(
    parse_int=Number,
    parse_float=Number,
    parse_constant=lambda _: None,
    object_pairs_hook=_as_object,
)
BLOCK = 2**20  # minimum number of bytes of a JSON array read at a time
PEEK = 4096  # number of bytes searched for the first character of a JSON file
SPACE = re.compile(r"[ \t\r\n]*")
SEPARATOR_LINE = re.compile(r'"?sep=([,;:|\t])"?\r?\n?')  # a first line that sets Excel's delimiter
QUOTED_LIKE_CSV = re.compile(r'"(?:[^"]|"")*""(?:[^"]|"")*"')
Records = Iterator[tuple[int, dict[str, Any]]]


def read_records(file: str, columns: Collection[str] = ()) -> Records:
    """Yield the line number and the values of each row. A missing value is None.

    - JSON: strings are decoded; numbers keep their literal text.
    - CSV: an empty cell is a missing value; an empty text is written `""`.
    - TSV: cells are not quoted; an empty cell is a missing value.
    - Plain text: each line, with its line break, is a row with a column `text`.

    Args:
        columns: Columns that the header of a CSV or TSV file must name exactly once.

    Raises:
        DataError: The file cannot be read. If a line or a row is invalid, the message includes the
            line number.
    """
    with open_file(file) as stream:
        yield from READERS[format_of(file)](file, stream, columns)


def _decoded_lines(file: str, stream: BufferedReader) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(stream, 1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            raise DataError(f"{file}:{number}: not UTF-8; save the file as UTF-8") from None
        yield number, text.removeprefix("\ufeff") if number == 1 else text


def _read_text(file: str, stream: BufferedReader, columns: Collection[str]) -> Records:
    for number, line in _decoded_lines(file, stream):
        yield number, {"text": line.replace("\r\n", "\n").replace("\r", "\n")}


def _read_jsonl(file: str, stream: BufferedReader, columns: Collection[str]) -> Records:
    for number, line in _decoded_lines(file, stream):
        if line.strip(" \t\r\n"):
            yield number, _decode_row(file, number, line)


def _decode_row(file: str, number: int, line: str) -> dict[str, Any]:
    try:
        row = DECODER.decode(line)
    except (ValueError, RecursionError) as error:
        sentence = f"{file}:{number}: broken JSON ({_reason(error)}); expected one object"
        raise DataError(sentence) from None
    if not isinstance(row, dict):
        raise DataError(f"{file}:{number}: a JSON {_kind(line)}; expected one object")
    return row


def _reason(error: Exception) -> str:
    """Return the message without its line number, which is relative to the decoded text."""
    return getattr(error, "msg", str(error))


def _kind(text: str) -> str:
    first = text.lstrip()[:1]
    return {"[": "list", '"': "string", "n": "null"}.get(first, "number or word")


def _read_json(file: str, stream: BufferedReader, columns: Collection[str]) -> Records:
    """Read an array of objects, or one object per line."""
    head = stream.peek(PEEK)[:PEEK].removeprefix(codecs.BOM_UTF8).lstrip()
    if head.startswith(b"["):
        return _ArrayReader(file, stream).records()
    return _read_jsonl(file, stream, columns)


class _ArrayReader:
    """Decodes the objects of a JSON array one by one, without loading the full file."""

    def __init__(self, file: str, stream: BufferedReader):
        self._file = file
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._text = ""
        self._position = 0
        self._line = 1

    def records(self) -> Records:
        """Yield the line and the decoded object of each element."""
        self._take("[")
        if self._next() != "]":
            yield self._element()
            while self._next() == ",":
                self._take(",")
                yield self._element()
        self._take("]")
        if found := self._next():
            raise self._error(f"{found!r} after the end of the list")

    def _take(self, expected: str) -> None:
        if (found := self._next()) != expected:
            raise self._error(
                f"{found!r}; expected {expected!r}" if found else "the file ends early"
            )
        self._position += 1

    def _next(self) -> str:
        """Skip white space; return the next character, or "" at the end of the file."""
        while True:
            end = SPACE.match(self._text, self._position).end()  # type: ignore[union-attr]
            self._move(end)
            if end < len(self._text):
                return self._text[end]
            if not self._read(BLOCK):
                return ""

    def _move(self, end: int) -> None:
        self._line += self._text.count("\n", self._position, end)
        self._position = end

    def _read(self, size: int) -> bool:
        """Discard the text before the position; append a block. Return False at the file's end."""
        block = self._stream.read(size)
        try:
            more = self._decode(block, final=not block)
        except UnicodeDecodeError as error:
            self._move(len(self._text))
            line = self._line + block.count(b"\n", 0, error.start)
            sentence = f"{self._file}:{line}: not UTF-8; save the file as UTF-8"
            raise DataError(sentence) from None
        self._text = self._text[self._position :] + more
        self._position = 0
        return bool(block)

    def _element(self) -> tuple[int, dict[str, Any]]:
        if (found := self._next()) != "{":
            if not found:
                raise self._error("the file ends early")
            place = f"{self._file}:{self._line}"
            raise DataError(f"{place}: {found!r} in the list; expected a list of objects")
        while True:
            try:
                row, end = DECODER.raw_decode(self._text, self._position)
                break
            except (ValueError, RecursionError) as error:
                is_incomplete = isinstance(error, json.JSONDecodeError)
                # Double the text, so that decoding a long object takes linear time.
                size = max(BLOCK, len(self._text) - self._position)
                if not (is_incomplete and self._read(size)):
                    raise self._error(_reason(error)) from None
        line = self._line
        self._move(end)
        return line, row

    def _error(self, reason: str) -> DataError:
        place = f"{self._file}:{self._line}"
        return DataError(f"{place}: broken JSON ({reason}); expected a list of objects")


def _read_tsv(file: str, stream: BufferedReader, columns: Collection[str]) -> Records:
    names: list[str] | None = None
    for number, line in _decoded_lines(file, stream):
        cells = line.rstrip("\r\n").split("\t")
        if not line.strip("\r\n"):
            continue
        if names is None:
            names = cells
            _check_header(file, number, names, columns)
        else:
            _check_width(file, number, names, cells)
            if any(QUOTED_LIKE_CSV.fullmatch(cell) for cell in cells if cell.startswith('"')):
                raise DataError(f"{file}:{number}: quoted as in CSV; expected TSV without quotes")
            yield number, {n: cell or None for n, cell in zip(names, cells, strict=True)}


class _Lines:
    """Iterable of lines for `csv.reader`.

    Args:
        number: Number of lines of the file before `lines`.

    Attributes:
        number: Number of lines of the file that have been read.
        record: Lines of the current record. The caller empties this list before each record.
    """

    def __init__(self, lines: Iterator[str], number: int):
        self._lines = lines
        self.number = number
        self.record: list[str] = []

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.number += 1
            self.record.append(line)
            yield line


def _split_lines(file: str, stream: BufferedReader) -> Iterator[str]:
    """Yield the lines of a file. A carriage return without a line feed also ends a line."""
    for _, line in _decoded_lines(file, stream):
        yield from re.findall(r"[^\r]*\r\n?|[^\r]+", line) if "\r" in line else [line]


def _read_csv(file: str, stream: BufferedReader, columns: Collection[str]) -> Records:
    pieces = _split_lines(file, stream)
    first = next(pieces, "")
    separator = SEPARATOR_LINE.fullmatch(first)
    delimiter = separator[1] if separator else ","
    lines = _Lines(pieces if separator else chain([first], pieces), 1 if separator else 0)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    names: list[str] | None = None
    while (cells := _next_row(file, rows, lines)) is not None:
        begin = lines.number - len(lines.record) + 1
        if names is None and cells:
            names = cells
            _check_header(file, begin, names, columns)
        elif names and cells:
            _check_width(file, begin, names, cells)
            values = _mark_missing(cells, lines.record, delimiter)
            yield begin, dict(zip(names, values, strict=True))


def _next_row(file: str, rows: Iterator[list[str]], lines: _Lines) -> list[str] | None:
    lines.record = []
    begin = lines.number + 1
    try:
        return next(rows, None)
    except csv.Error as reason:
        raise DataError(f"{file}:{begin}: broken CSV ({reason})") from None


def _mark_missing(cells: list[str], record: list[str], delimiter: str) -> list[str | None]:
    """Replace each empty cell with None, unless it is written `""`."""
    if "" not in cells:
        return list(cells)
    mark = re.escape(delimiter)
    pattern = re.compile(rf'("[^"]*(?:""[^"]*)*"|[^{mark}\r\n]*)(?:{mark}|\r?\n?\Z)')
    written = [match[1] for match in pattern.finditer("".join(record))]
    return [c if c or w else None for c, w in zip(cells, written, strict=False)]


def _check_header(file: str, number: int, names: list[str], columns: Collection[str]) -> None:
    for column in columns:
        if (count := names.count(column)) != 1:
            found = ", ".join(repr(name) for name in names if name)
            what = f"{count} columns" if count else "no column"
            raise DataError(f"{file}:{number}: {what} {column!r}; the file has {found}")


def _check_width(file: str, number: int, names: list[str], cells: list[str]) -> None:
    if len(cells) != len(names):
        raise DataError(f"{file}:{number}: {len(cells)} cells; expected {len(names)}")


READERS: dict[str, Callable[[str, BufferedReader, Collection[str]], Records]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".txt": _read_text,
}
