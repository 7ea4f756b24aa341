"""The data: a text and its label per example."""

import datasets
import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from reading import DataError, Source, pad, read_table, row_name, tensors, tokenized

from .configuration import BASE_MODEL

# Arguments of generate_dataset that train.py offers on its command line.
OPTIONS: dict[str, dict] = {
    "text_column": {"default": "text", "help": "column of both files"},
    "label_column": {"default": "label", "help": "column of both files"},
}


class Dataset(torch.utils.data.Dataset):
    """Tokenized examples.

    Attributes:
        lengths: Tokens of each example, shape (n,); like lengths are batched together.
        num_items: Label items of each example, shape (n,); the loss is averaged over these.
        schema: How the file was read. Given to `generate_dataset`, it reads another file in the
            same way; given to `ModelConfig`, it tells the model the labels.
    """

    def __init__(self, rows: datasets.Dataset, schema: dict, pad_token_id: int | None):
        self.rows = rows.select_columns(["input_ids", "labels"]).with_format("arrow")
        self.lengths = rows.data.column("length").to_numpy()
        self.num_items = np.broadcast_to(np.int64(1), len(rows))
        self.schema = schema
        self.pad_token_id = pad_token_id or 0  # any id will do: the mask hides it

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def label_counts(self) -> dict[str, int]:
        counts = np.bincount(self.rows.data.column("labels").to_numpy())
        return dict(zip(self.schema["labels"], counts.tolist(), strict=False))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, torch.Tensor]]:
        rows = self.rows[indices]
        labels = torch.tensor(rows["labels"].to_numpy())
        return [
            {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": label}
            for ids, label in zip(tensors(rows, "input_ids"), labels, strict=True)
        ]

    def collate(self, examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Pad to the longest: ids and mask of shape (batch, length), labels of shape (batch,)."""
        return {
            "input_ids": pad(examples, "input_ids", self.pad_token_id),
            "attention_mask": pad(examples, "attention_mask", 0),
            "labels": torch.stack([example["labels"] for example in examples]),
        }


def generate_dataset(
    path: Source,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_len: int = 128,
    *,
    text_column: str = OPTIONS["text_column"]["default"],
    label_column: str = OPTIONS["label_column"]["default"],
    labels: list[str] | None = None,
) -> Dataset:
    """Read a file of labelled texts.

    Args:
        path: JSON lines, CSV, TSV or Parquet; see `read_table` for all that may stand here.
        tokenizer: The base model's own when not given.
        max_len: Longer texts are cut to this many tokens.
        text_column: The column that holds the text.
        label_column: The column that holds the label, text or number.
        labels: The label names to expect, in the order of their ids; those found in the file,
            sorted, when not given.

    Raises:
        DataError: the file cannot be read, or holds a label that is not one of `labels`.
    """
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(BASE_MODEL)
    table = read_table(path, [text_column, label_column])
    found = table.unique(label_column)
    if labels is None:
        labels = sorted(found, key=lambda name: (int(name) if name.isdecimal() else -1, name))
    for name in set(found) - set(labels):
        where = row_name(path, table[label_column].index(name))
        raise DataError(f"{where}: unknown label {name!r}; expected one of {', '.join(labels)}")
    label2id = {name: index for index, name in enumerate(labels)}

    def encode(batch: dict[str, list]) -> dict[str, list]:
        ids = tokenizer(batch[text_column], truncation=True, max_length=max_len)["input_ids"]
        return {
            "input_ids": ids,
            "labels": [label2id[name] for name in batch[label_column]],
            "length": [len(i) for i in ids],
        }

    rows = tokenized(table, encode, tokenizer)
    schema = {"text_column": text_column, "label_column": label_column, "labels": labels}
    return Dataset(rows, schema, tokenizer.pad_token_id)
