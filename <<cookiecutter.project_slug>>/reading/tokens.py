"""Tokenize a table once, in parallel and cached, and make batches of its rows."""

from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate

import datasets
import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedTokenizerBase


def tokenized(
    table: datasets.Dataset,
    encode: Callable[[dict[str, list]], dict[str, list]],
    tokenizer: PreTrainedTokenizerBase,
) -> datasets.Dataset:
    """Apply `encode` to batches of rows and keep only the columns it returns.

    The result is cached by the table, the code of `encode` and all that it uses, and
    memory-mapped: a second run, or a second process, finds it.
    """
    if tokenizer.is_fast:
        # Truncation is kept inside the tokenizer, and would change the hash the cache goes by.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    # No `num_proc`: a fast tokenizer works on all cores by itself, and a fork beside the threads
    # of a process group can hang.
    return table.map(encode, batched=True, remove_columns=table.column_names)


class Lists:
    """The lists of a column, one for each row, read where they lie in the disk map."""

    def __init__(self, rows: datasets.Dataset, name: str):
        self._source = rows, name
        chunks = rows.data.column(name).chunks
        self._parts = [(chunk.offsets.to_numpy(), chunk.values.to_numpy()) for chunk in chunks]
        self._firsts = [0, *accumulate(map(len, chunks))]

    def __getitem__(self, indices: list[int]) -> tuple[torch.Tensor, ...]:
        parts = [self._row(index) for index in indices]
        return _tensor(np.concatenate(parts)).split([len(part) for part in parts])

    def __reduce__(self):
        return Lists, self._source  # a worker process maps the file itself

    def _row(self, index: int) -> np.ndarray:
        part = bisect_right(self._firsts, index) - 1
        offsets, values = self._parts[part]
        row = index - self._firsts[part]
        return values[offsets[row] : offsets[row + 1]]


def column(rows: datasets.Dataset, name: str) -> Lists | torch.Tensor:
    """Give a column that lists of row numbers index: its numbers, or its lists as tensors."""
    values = rows.data.column(name)
    return Lists(rows, name) if pa.types.is_nested(values.type) else _tensor(values.to_numpy())


def _tensor(values: np.ndarray) -> torch.Tensor:
    """In the types that models take: int64 and float32."""
    is_whole = np.issubdtype(values.dtype, np.integer)
    return torch.from_numpy(values.astype(np.int64 if is_whole else np.float32))


def pad(
    examples: list[dict[str, torch.Tensor]], key: str, value: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack one key of the examples, filled up with `value` to the longest.

    Returns:
        What was stacked; and 1 where it is, 0 where it was filled up: both (batch, length).
    """
    parts = [example[key] for example in examples]
    lengths = np.array([part.numel() for part in parts])
    mask = np.arange(lengths.max()) < lengths[:, None]
    values = torch.cat(parts).numpy()
    padded = np.full(mask.shape, value, values.dtype)
    padded[mask] = values  # in one go: torch's pad_sequence copies row by row
    return torch.from_numpy(padded), torch.from_numpy(mask.astype(np.int64))
