"""Find rows that may be wrong, for `--dry_run`."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerBase

from .locate import locate_row
from .sources import Source

BATCH = 1000  # number of rows tokenized at a time
NAMES = 8  # maximum number of labels listed in a line


@dataclass(frozen=True)
class Rows:
    """Rows of a data set, in the order of its source.

    Attributes:
        source: Source of the rows.
        texts: The columns of the source that `read_table` returned.
        tokens: The columns returned by `tokenize`.
        row_of: For each row of `tokens`, the index of its row in the source, shape (n,). Default:
            the same index.
    """

    source: Source
    texts: datasets.Dataset
    tokens: datasets.Dataset
    row_of: np.ndarray | None = None

    def line(self, what: str, found: np.ndarray, more: str = "") -> Iterator[str]:
        """If rows were found, yield a line with their number and the place of the first one."""
        if len(found):
            place = locate_row(self.source, int(found[0]))
            yield f"  {what}: {len(found):,}{more}, first {place}"

    def empty(self, column: str) -> Iterator[str]:
        """Find texts that are empty or contain only white space."""
        masks = [
            pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(chunk)), 0).to_numpy(False)
            for chunk in self.texts.data.column(column).chunks
        ]
        yield from self.line(f"empty {column!r}", np.flatnonzero(np.concatenate(masks)))

    def doubled(self, column: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
        """Find sequences that begin or end with the same special token twice."""
        begins = (tokenizer.bos_token_id, tokenizer.cls_token_id)
        ends = (tokenizer.eos_token_id, tokenizer.sep_token_id)
        for place, offset, ids in (("begin", 0, begins), ("end", -2, ends)):
            first, second = _neighbours(self.tokens, column, offset)
            for token in sorted({token for token in ids if token is not None}):
                found = np.flatnonzero((first == token) & (second == token))
                name = tokenizer.convert_ids_to_tokens(token)
                what = f"{column} that {place} with {name} twice"
                yield from self.line(what, self._in_source(found))

    def cut(
        self, what: str, at_limit: np.ndarray, max_len: int, encode: Callable[[Any], list[list]]
    ) -> Iterator[str]:
        """Find texts truncated to `max_len`, and count the removed tokens.

        Args:
            at_limit: Indices of the rows with `max_len` tokens, which are tokenized again.
            encode: Function that tokenizes a batch of rows (a dict of columns) without truncation.
        """
        lengths = [0]
        for begin in range(0, len(at_limit), BATCH):
            batch = self.texts.select(at_limit[begin : begin + BATCH])[:]
            lengths += map(len, encode(batch))
        lost = np.maximum(np.array(lengths[1:]) - max_len, 0)
        found = at_limit[lost > 0]
        if len(found):
            lost = lost[lost > 0]
            more = f" of {len(self.texts):,} (by {lost.min():,} to {lost.max():,} tokens, "
            more += f"{lost.sum():,} in all)"
            yield from self.line(f"{what} cut to --max_len {max_len}", found, more)

    def repeated(self, checksums: np.ndarray, train: np.ndarray | None) -> Iterator[str]:
        """Find rows that equal, after tokenization, an earlier row or a row of the training data.

        Args:
            checksums: Checksum of each row of `tokens`, shape (n,).
            train: Checksums of the training data if `tokens` are validation data, otherwise None.
        """
        found = self._in_source(repeats(checksums))
        yield from self.line("equal to an earlier row after tokenization", found)
        if train is not None:
            found = self._in_source(np.flatnonzero(np.isin(checksums, train)))
            yield from self.line("equal to a training row after tokenization", found)

    def contradictory(self, column: str, checksums: np.ndarray) -> Iterator[str]:
        """Find rows that have the tokens of an earlier row, but other labels.

        Args:
            checksums: Checksum of at least the labels of each row of `tokens`, shape (n,).
        """
        earlier: dict[bytes, int] = {}
        found = []
        for row, tokens in enumerate(values_of(self.tokens, column)):
            key = hashlib.blake2b(tokens.tobytes(), digest_size=16).digest()
            if earlier.setdefault(key, checksums[row]) != checksums[row]:
                found.append(row)
        what = "equal to an earlier row after tokenization, but with other labels"
        yield from self.line(what, self._in_source(np.array(found, dtype=np.int64)))

    def single_labels(
        self, names: Sequence[str], labels: np.ndarray, rows: np.ndarray
    ) -> Iterator[str]:
        """Find labels that occur only once.

        Args:
            labels: All occurrences of labels, as indices into `names`, shape (n,).
            rows: For each occurrence, the index of its row in the source, shape (n,).
        """
        once = np.flatnonzero(np.bincount(labels, minlength=len(names)) == 1)
        found = np.isin(labels, once)
        shown = ", ".join(names[index] for index in once[:NAMES])
        shown += ", ..." if len(once) > NAMES else ""
        yield from self.line(f"labels that occur once ({shown})", np.sort(rows[found]))

    def place(self, row: int) -> str:
        """Return the place in the source of a row of `tokens`."""
        return locate_row(self.source, row if self.row_of is None else int(self.row_of[row]))

    def _in_source(self, found: np.ndarray) -> np.ndarray:
        """Convert indices of rows of `tokens` to indices of rows of the source, each once."""
        return found if self.row_of is None else np.unique(self.row_of[found])


def repeats(checksums: np.ndarray) -> np.ndarray:
    """Return the indices of values equal to an earlier value."""
    _, firsts = np.unique(checksums, return_index=True)
    return np.setdiff1d(np.arange(len(checksums)), firsts, assume_unique=True)


def values_of(rows: datasets.Dataset, name: str) -> Iterator[np.ndarray]:
    """Yield the list in the column `name` of each row, as an array."""
    for chunk in rows.data.column(name).chunks:
        values = chunk.values.to_numpy()
        for begin, end in pairwise(chunk.offsets.to_numpy().tolist()):
            yield values[begin:end]


def _neighbours(rows: datasets.Dataset, name: str, offset: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two adjacent tokens of each row, or -1 for rows with fewer than two tokens.

    Args:
        offset: Index of the first of the two tokens. A negative index counts from the end.
    """
    pairs = []
    for chunk in rows.data.column(name).chunks:
        values = chunk.values.to_numpy()
        ends = chunk.offsets.to_numpy()
        begins = (ends[:-1] if offset >= 0 else ends[1:]) + offset
        has_two = np.diff(ends) >= 2
        pair = np.full((2, len(begins)), -1)
        pair[:, has_two] = values[begins[has_two]], values[begins[has_two] + 1]
        pairs.append(pair)
    first, second = np.concatenate(pairs, axis=1)
    return first, second
