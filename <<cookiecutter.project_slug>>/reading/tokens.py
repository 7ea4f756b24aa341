"""Tokenize a table once, in parallel and cached, and make batches of its rows."""

from collections.abc import Callable

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch.nn.utils.rnn import pad_sequence
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


def tensors(table: pa.Table, column: str) -> list[torch.Tensor]:
    """The lists of a column as int64 tensors, one for each row, without a Python number each."""
    lists = table[column].combine_chunks()
    values = torch.from_numpy(lists.values.to_numpy().astype(np.int64))
    offsets = lists.offsets.to_pylist()
    return [values[begin:end] for begin, end in zip(offsets, offsets[1:], strict=False)]


def pad(examples: list[dict[str, torch.Tensor]], key: str, value: int) -> torch.Tensor:
    """Stack one key of the examples, filled up with `value` to the longest: (batch, length)."""
    return pad_sequence([e[key] for e in examples], batch_first=True, padding_value=value)
