"""The data: a source text and a target text per example."""

import datasets
import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from reading.tables import Source, read_table
from reading.tokens import column, pad, tokenized

from .configuration import BASE_MODEL

# Arguments of generate_dataset that train.py offers on its command line.
OPTIONS: dict[str, dict] = {
    "source_column": {"default": "source", "help": "column of both files"},
    "target_column": {"default": "target", "help": "column of both files"},
}


class Dataset(torch.utils.data.Dataset):
    """Tokenized examples.

    Attributes:
        lengths: Tokens of source and target, shape (n,).
        sort_keys: Near one another where both parts are alike in length, shape (n,): these
            examples are batched together.
        num_items: Target tokens of each example, shape (n,); the loss is averaged over these.
        schema: How the file was read. Given to `generate_dataset`, it reads another file in the
            same way; given to `ModelConfig`, it is kept with the model.
    """

    def __init__(self, rows: datasets.Dataset, schema: dict, pad_token_id: int | None):
        self.rows = rows
        self.columns = column(rows, "input_ids"), column(rows, "labels")
        self.num_items = rows.data.column("num_items").to_numpy()
        self.lengths = rows.data.column("length").to_numpy()
        # Sources within a tenth of one another, by the target; up and down in turns.
        bucket = np.floor(np.log(self.lengths - self.num_items + 1) / np.log(1.1)).astype(np.int64)
        self.sort_keys = 2**32 * bucket + np.where(bucket % 2, -self.num_items, self.num_items)
        self.schema = schema
        self.pad_token_id = pad_token_id or 0  # any id will do: the mask hides it

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, torch.Tensor]]:
        rows = zip(*(values[indices] for values in self.columns), strict=True)
        found = [{"input_ids": ids, "labels": labels} for ids, labels in rows]
        for row, index in zip(found, indices, strict=True):
            for name in ("source_text", "target_text"):
                row[name] = self.rows[int(index)][name]
        return found

    def collate(self, examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Pad sources and targets to their longest: three tensors of shape (batch, length)."""
        input_ids, attention_mask = pad(examples, "input_ids", self.pad_token_id)
        labels, _ = pad(examples, "labels", -100)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        for name in ("source_text", "target_text"):
            batch[name] = [example[name] for example in examples]
        return batch


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
        path: JSON lines, CSV, TSV or Parquet; see `read_table` for all that may stand here.
        tokenizer: The base model's own when not given.
        max_len: Longer sources and targets are cut to this many tokens, the end mark included.
        source_column: The column that holds the source text.
        target_column: The column that holds the target text.

    Raises:
        DataError: the file cannot be read.
    """
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(BASE_MODEL)
    table = read_table(path, [source_column, target_column])
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id

    def encode(batch: dict[str, list]) -> dict[str, list]:
        cut = {"truncation": True, "max_length": max_len}
        sources = tokenizer(batch[source_column], **cut)["input_ids"]
        targets = tokenizer(text_target=batch[target_column], **cut)["input_ids"]
        # A tokenizer that adds no end mark would teach the model never to stop.
        targets = [ids if end in ids[-2:] else [*ids[: max_len - 1], end] for ids in targets]
        return {
            "input_ids": sources,
            "labels": targets,
            "length": [len(s) + len(t) for s, t in zip(sources, targets, strict=True)],
            "num_items": [len(t) for t in targets],
            "source_text": batch[source_column],
            "target_text": batch[target_column],
        }

    rows = tokenized(table, encode, tokenizer)
    schema = {"source_column": source_column, "target_column": target_column}
    return Dataset(rows, schema, tokenizer.pad_token_id)
