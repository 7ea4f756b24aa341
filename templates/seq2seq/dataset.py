"""Read pairs of a source text and a target text, and tokenize them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from errors import DataError
from reading.examples import describe_examples
from reading.faults import Rows
from reading.locate import locate_row
from reading.sources import Source
from reading.tables import read_table
from reading.tokens import CHECKSUM, column, fill_empty, fingerprint, pad, tokenize

from .configuration import BASE_MODEL

# Arguments of generate_dataset that train.py offers on its command line.
OPTIONS: dict[str, dict] = {
    "source_column": {"default": "source", "help": "column of the source texts"},
    "target_column": {"default": "target", "help": "column of the target texts"},
}


class Dataset(torch.utils.data.Dataset):
    """Tokenized examples.

    Attributes:
        lengths: Number of tokens of source and target together, shape (n,).
        sort_keys: Keys that are similar for examples with similar lengths of source and target,
            shape (n,). Examples with similar keys are batched together.
        num_items: Number of target tokens of each example, shape (n,). The loss is averaged over
            these tokens.
        schema: Keyword arguments with which `generate_dataset` reads another file as it has read
            this one.
        checksums: Checksum of each example, shape (n,). Without `--valid_input`, the checksum
            determines whether the example is held out for validation.
        fingerprint: Hash of the tokens of sources and targets, the same on every machine.
    """

    def __init__(
        self,
        origin: Rows,
        schema: dict,
        tokenizer: PreTrainedTokenizerBase,
        max_len: int,
    ):
        rows = origin.tokens
        self.rows = rows
        self.origin = origin
        self.max_len = max_len
        self.num_items = rows.data.column("num_items").to_numpy()
        self.lengths = rows.data.column("length").to_numpy()
        self.sort_keys = boustrophedon_keys(self.lengths - self.num_items, self.num_items)
        self.columns = {
            "input_ids": column(rows, "input_ids"),
            "labels": column(rows, "labels"),
            # The texts of the file, for the scores.
            "source_text": column(origin.texts, schema["source_column"]),
            "target_text": column(origin.texts, schema["target_column"]),
        }
        self.schema = schema
        self.fingerprint = fingerprint(rows)
        self.checksums = rows.data.column(CHECKSUM).to_numpy()
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        rows = zip(*(values[indices] for values in self.columns.values()), strict=True)
        return [dict(zip(self.columns, row, strict=True)) for row in rows]

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad the sources to the longest source, and the targets to the longest target.

        Sources have the shape (batch, source length), targets (batch, target length). The texts of
        the file are returned as lists.
        """
        pad_id = self.tokenizer.pad_token_id or 0  # any id, since padding is masked
        input_ids, attention_mask = pad(examples, "input_ids", pad_id)
        labels, _ = pad(examples, "labels", -100)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        texts = ("source_text", "target_text")
        return batch | {name: [example[name] for example in examples] for name in texts}

    def describe(self) -> Iterator[str]:
        """Yield lines that show a few examples."""
        yield from describe_examples(self, self._decode)

    def faults(self, train: "Dataset | None" = None) -> Iterator[str]:
        """Yield lines about rows that may be wrong, such as rows with an empty target.

        Args:
            train: Training data, if this data set is validation data.
        """
        origin = self.origin
        source = self.schema["source_column"]
        target = self.schema["target_column"]
        end = end_token_id(self.tokenizer)
        yield from origin.empty(source)
        yield from origin.empty(target)

        def encode_sources(batch: dict[str, list]) -> list[list]:
            return self.tokenizer(batch[source], verbose=False)["input_ids"]

        def encode_targets(batch: dict[str, list]) -> list[list]:
            targets = self.tokenizer(text_target=batch[target], verbose=False)["input_ids"]
            return [ids if end in ids[-2:] else [*ids, end] for ids in targets]

        full = np.flatnonzero(self.lengths - self.num_items >= self.max_len)
        yield from origin.cut("sources", full, self.max_len, encode_sources)
        full = np.flatnonzero(self.num_items >= self.max_len)
        yield from origin.cut("targets", full, self.max_len, encode_targets)
        yield from origin.doubled("input_ids", self.tokenizer)
        yield from origin.doubled("labels", self.tokenizer)
        yield from origin.repeated(self.checksums, None if train is None else train.checksums)

    def _decode(self, example: dict[str, Any]) -> tuple[str, str]:
        decode = self.tokenizer.decode
        return decode(example["input_ids"]), decode(example["labels"])


def end_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id of the EOS token, or of the separator if there is no EOS token."""
    return tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id


def boustrophedon_keys(sources: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return keys that order pairs by source length and, among similar sources, by target length.

    Sources are divided by length into groups, in which lengths differ by at most about 10 %. Target
    lengths are sorted in ascending order in one group and in descending order in the next group, so
    that neighbours are similar at the border of two groups.
    """
    group = np.floor(np.log(sources + 1) / np.log(1.1)).astype(np.int64)
    return 2**32 * group + np.where(group % 2, -targets, targets)


def generate_dataset(
    path: Source,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_len: int = 128,
    *,
    source_column: str = OPTIONS["source_column"]["default"],
    target_column: str = OPTIONS["target_column"]["default"],
) -> Dataset:
    """Read a file of pairs.

    Args:
        path: A JSON, CSV, TSV or Parquet file, or another source: see `read_table`.
        tokenizer: Default: the tokenizer of the default base model.
        max_len: Maximum number of tokens of a source or target, with the end-of-sequence token.
            Longer sources and targets are truncated.
        source_column: Column of the source texts.
        target_column: Column of the target texts.

    Raises:
        DataError: The file cannot be read, a source has no tokens, or the tokenizer has neither an
            EOS token nor a separator.
    """
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(BASE_MODEL)
    end = end_token_id(tokenizer)
    if end is None:
        raise DataError("the tokenizer has neither eos_token nor sep_token; expected one of them")
    table = read_table(path, [source_column, target_column])

    def encode(batch: dict[str, list]) -> dict[str, list]:
        cut = {"truncation": True, "max_length": max_len}
        inputs = tokenizer(batch[source_column], **cut)
        fill_empty(inputs, tokenizer)
        sources = inputs["input_ids"]
        targets = tokenizer(text_target=batch[target_column], **cut)["input_ids"]
        # Without an end-of-sequence token in the targets, the model would never learn to stop.
        targets = [ids if end in ids[-2:] else [*ids[: max_len - 1], end] for ids in targets]
        return {
            "input_ids": sources,
            "labels": targets,
            "length": [len(s) + len(t) for s, t in zip(sources, targets, strict=True)],
            "num_items": [len(ids) for ids in targets],
        }

    rows = tokenize(table, encode, tokenizer)
    schema = {"source_column": source_column, "target_column": target_column}
    dataset = Dataset(Rows(path, table, rows), schema, tokenizer, max_len)
    source_lengths = dataset.lengths - dataset.num_items
    if source_lengths[empty := int(source_lengths.argmin())] == 0:
        where = locate_row(path, empty)
        raise DataError(f"{where}: {table[empty][source_column]!r} has no tokens; expected text")
    return dataset
