"""Predict the rows of a file block by block, so that memory does not grow with the file."""

import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from errors import DataError, RunError
from model.interface import TaskPredictor
from reading.named import resolve
from reading.tables import read_table
from training.contract import predictor_input
from training.distributed import RankGroup
from training.user_code import at_place, user_code

BATCHES = 64  # number of rows in a block, divided by the batch size; a block is batched by length
PORTION = 1000  # number of rows that are read from a table at a time
SHORTEST = 0.75  # minimum length of an example, relative to the longest example of its batch
Row = dict[str, Any]
Rows = Callable[[], Iterator[Row]]  # a function that reads all rows from the beginning


def check_output(source: str | list[str], output: Path) -> None:
    """Check that the output would not replace the input.

    Raises:
        RunError: `output` is one of the input files.
    """
    files: list[str] = [source] if isinstance(source, str) else source
    with suppress(DataError):  # a format that only Predictor.read can read
        files = resolve(source).files
    for file in map(Path, files):
        if output.exists() and file.exists() and output.samefile(file):
            raise RunError(f"--output {output}: is a file of --input; expected another file")


def open_rows(source: str | list[str], columns: list[str] | None, predictor: TaskPredictor) -> Rows:
    """Open the input: with `Predictor.read` if it exists, otherwise as a table of text.

    Args:
        columns: Columns to read, also assigned to `predictor.columns`. None or an empty list means
            `predictor.columns`.

    Raises:
        RunError: The predictor expects another number of columns.
        DataError: The file cannot be read, or a column is missing. With `Predictor.read`, this
            error is raised only when the rows are read.
    """
    columns = columns or predictor.columns
    if len(columns) != len(predictor.columns):
        raise RunError(f"--column {' '.join(columns)}: expected {len(predictor.columns)} column(s)")
    predictor.columns = columns
    if hasattr(predictor, "read"):
        return partial(_read_by, predictor.read, source, columns)
    lists = columns if getattr(predictor, "takes_lists", False) else []
    return partial(_read_portions, read_table(source, columns, lists))


def _read_by(read: Callable, source: str | list[str], columns: list[str]) -> Iterator[Row]:
    try:
        for row in read(source):
            if missing := [name for name in columns if name not in row]:
                raise DataError(
                    f"{source}: a row has no {missing[0]!r}; expected the columns {columns}"
                )
            yield {name: row[name] for name in columns}
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error})") from None


def _read_portions(table: Any) -> Iterator[Row]:
    for part in table.iter(PORTION):
        for values in zip(*part.values(), strict=True):
            yield dict(zip(part, values, strict=True))


def hash_rows(rows: Iterable[Row]) -> tuple[int, int]:
    """Read all rows once, so that an invalid row raises an error before the prediction starts.

    Returns:
        The number of rows, and a hash of their content.
    """
    count = 0
    digest = 0
    for row in rows:
        digest = zlib.crc32(repr(row).encode("utf-8", "surrogatepass"), digest)
        count += 1
    return count, digest


def predict_rows(
    group: RankGroup,
    predictor: TaskPredictor,
    rows: Rows,
    first: int,
    batch_size: int,
    bar: tqdm,
) -> Iterator[list[Row]]:
    """Predict rows block by block. Each block is batched by length and divided among the ranks.

    Args:
        first: Index of the first row to predict.
        bar: Progress bar over the rows.

    Yields:
        The rows of each block with their predictions, in input order, on every rank.
    """
    remaining = islice(rows(), first, None)
    while block := list(islice(remaining, BATCHES * batch_size)):
        texts = [predictor_input(row) for row in block]
        batches = list(batch_by_length(_lengths(predictor, texts), batch_size))
        found: list[tuple[int, Row]] = []
        for batch in batches[group.rank :: group.size]:
            with at_place("--input", [first + index for index in batch]):
                predictions = predictor([texts[index] for index in batch])
                found += zip(batch, predictions, strict=True)
            bar.update(len(batch))
        by_index = dict(chain.from_iterable(group.gather(found)))
        bar.update(len(block) - len(found))  # the rows of the other ranks
        first += len(block)
        yield [{**row, **by_index[index]} for index, row in enumerate(block)]


def batch_by_length(lengths: list[int], size: int) -> Iterator[list[int]]:
    """Yield batches of indices, the longest examples first.

    A batch has at most `size` examples. To limit padding, the shortest example of a batch is at
    least `SHORTEST` times as long as the longest.
    """
    batch: list[int] = []
    for index in np.argsort(np.negative(lengths), kind="stable").tolist():
        if len(batch) == size or (batch and lengths[index] < SHORTEST * lengths[batch[0]]):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _lengths(predictor: Any, texts: list) -> list[int]:
    if hasattr(predictor, "lengths"):
        with user_code("model/prediction.py: Predictor.lengths fails"):
            return predictor.lengths(texts)
    return [len(str(text)) for text in texts]
