"""Tokenize a table with a cache, access its columns, and pad examples to form a batch."""

import hashlib
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import nullcontext
from itertools import accumulate
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedTokenizerBase

from .identity import hash_function, hash_values, unchanged

CHECKSUM = "checksum"  # column that `tokenize` adds


def tokenize(
    table: datasets.Dataset,
    encode: Callable[[dict[str, list]], dict[str, list]],
    tokenizer: PreTrainedTokenizerBase,
) -> datasets.Dataset:
    """Apply `encode` to batches of rows; keep the columns it returns, with a checksum of each row.

    The result is stored in the cache of `datasets`, which other runs and processes share, and is
    memory-mapped. The cache key depends on the table, the source code of the module of `encode` and
    of all project modules that this module imports, the values that `encode` closes over, and the
    tokenizer. `encode` must have no side effects, since it is not called if the result is in the
    cache. Afterwards, the tokenizer has its previous state, except that truncation and padding are
    reset.
    """
    key = hash_values(table._fingerprint, hash_function(encode, tokenizer))
    path = Path(datasets.config.HF_DATASETS_CACHE, "tokens", f"{key}.arrow")

    def encode_and_sum(batch: dict[str, list]) -> dict[str, list]:
        columns = encode(batch)
        return {**columns, CHECKSUM: [_checksum(row) for row in _rows(columns)]}

    path.parent.mkdir(parents=True, exist_ok=True)
    # Do not use `num_proc`: a fast tokenizer uses all cores by itself, and a process that is forked
    # while a process group has threads can hang.
    with nullcontext() if path.exists() else unchanged(tokenizer):
        return table.map(
            encode_and_sum,
            batched=True,
            remove_columns=table.column_names,
            cache_file_name=str(path),
            new_fingerprint=key,
        )


def fill_empty(tokens: MutableMapping[str, list], tokenizer: PreTrainedTokenizerBase) -> None:
    """Give each text without tokens one special token, so that no example has length 0.

    An empty text has no tokens if the tokenizer, like that of GPT-2, adds no special tokens. If the
    tokenizer has no EOS, BOS or UNK token, leave the text without tokens.

    Args:
        tokens: Output of the tokenizer for a list of texts; changed in place.
    """
    ids = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id)
    filler = next((token for token in ids if token is not None), None)
    if filler is None:
        return
    values = {"input_ids": filler, "attention_mask": 1, "token_type_ids": 0}
    for row, present in enumerate(tokens["input_ids"]):
        if not present:
            for name in tokens:
                tokens[name][row] = [values[name]]


def _checksum(row: tuple) -> int:
    """Return a 63-bit hash. Its lower 32 bits are CRC-32, the checksum of earlier versions.

    With CRC-32 alone, about a hundred pairs among a million different rows would have equal hashes.
    """
    content = repr(row).encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(content, digest_size=4).digest()
    return int.from_bytes(digest, "little") // 2 * 2**32 + zlib.crc32(content)


def _rows(columns: dict[str, list]) -> Iterator[tuple]:
    names = sorted(columns)
    for row in zip(*(columns[name] for name in names), strict=True):
        # The `repr` of a long array or tensor omits values.
        yield tuple(value.tolist() if hasattr(value, "tolist") else value for value in row)


def fingerprint(rows: datasets.Dataset) -> int:
    """Hash the rows that `tokenize` returned; the hash is the same on every machine."""
    return zlib.crc32(rows.data.column(CHECKSUM).to_numpy().astype("<u4").tobytes())


class _Column:
    """A column of a memory-mapped table, as a list of chunks."""

    def __init__(self, rows: datasets.Dataset, name: str):
        self._source = rows, name
        self._chunks = rows.data.column(name).chunks
        self._firsts = [0, *accumulate(map(len, self._chunks))]

    def __reduce__(self):
        return type(self), self._source  # a loader process maps the file itself

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the index of the chunk that contains a row, and the row's index in the chunk."""
        chunk = bisect_right(self._firsts, index) - 1
        return chunk, index - self._firsts[chunk]


class RaggedColumn(_Column):
    """Access to a list column of a memory-mapped table."""

    def __init__(self, rows: datasets.Dataset, name: str):
        super().__init__(rows, name)
        self._parts = [(c.offsets.to_numpy(), c.values.to_numpy()) for c in self._chunks]

    def __getitem__(self, indices: list[int]) -> tuple[torch.Tensor, ...]:
        parts = [self._row(index) for index in indices]
        return _tensor(np.concatenate(parts)).split([len(part) for part in parts])

    def _row(self, index: int) -> np.ndarray:
        chunk, row = self._locate(index)
        offsets, values = self._parts[chunk]
        return values[offsets[row] : offsets[row + 1]]


class TextColumn(_Column):
    """Access to a text column of a memory-mapped table."""

    def __getitem__(self, indices: list[int]) -> list[str]:
        places = map(self._locate, indices)
        return [self._chunks[chunk][row].as_py() for chunk, row in places]


def column(rows: datasets.Dataset, name: str) -> RaggedColumn | TextColumn | torch.Tensor:
    """Return a column, to be indexed with a list of row indices."""
    values = rows.data.column(name)
    if pa.types.is_nested(values.type):
        return RaggedColumn(rows, name)
    if pa.types.is_string(values.type):
        return TextColumn(rows, name)
    return _tensor(values.to_numpy())


def _tensor(values: np.ndarray) -> torch.Tensor:
    """Convert to a tensor of a type that models accept: int64 or float32."""
    is_whole = np.issubdtype(values.dtype, np.integer)
    return torch.from_numpy(values.astype(np.int64 if is_whole else np.float32))


def pad(
    examples: list[dict[str, torch.Tensor]], key: str, value: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack the values of one key of the examples, padded with `value` to the same length.

    Returns:
        The stacked values and the attention mask, both of shape (batch, length).
    """
    parts = [example[key] for example in examples]
    lengths = np.array([part.numel() for part in parts])
    mask = np.arange(lengths.max()) < lengths[:, None]
    values = torch.cat(parts).numpy()
    padded = np.full(mask.shape, value, values.dtype)
    padded[mask] = values  # a single copy; pad_sequence of torch would copy row by row
    return torch.from_numpy(padded), torch.from_numpy(mask.astype(np.int64))
