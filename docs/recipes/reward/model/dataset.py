"""Read pairs of a chosen and a rejected text, or texts with a number."""

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from errors import DataError
from reading.locate import locate_row
from reading.sources import Source
from reading.tables import read_table

OPTIONS: dict[str, dict] = {
    "target_column": {"help": "column of the numbers to predict; default: read pairs of texts"},
}


class Dataset(torch.utils.data.Dataset):
    """Tokenized texts by their role in an example: chosen and rejected, or text."""

    def __init__(
        self,
        texts: dict[str, list[list[int]]],
        targets: list[float] | None,
        schema: dict,
        tokenizer: PreTrainedTokenizerBase,
    ):
        self.texts = texts
        self.targets = targets
        self.schema = schema
        self.tokenizer = tokenizer
        self.lengths = np.max([[len(ids) for ids in part] for part in texts.values()], axis=0)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example: dict[str, Any] = {name: part[index] for name, part in self.texts.items()}
        if self.targets is not None:
            example["target"] = self.targets[index]
        return example

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad the texts by role: {"chosen": {"input_ids", "attention_mask"}, "rejected": {...}}."""
        batch: dict[str, Any] = {}
        for name in self.texts:
            ids = {"input_ids": [example[name] for example in examples]}
            batch[name] = dict(self.tokenizer.pad(ids, return_tensors="pt"))
        if self.targets is not None:
            batch["target"] = torch.tensor([example["target"] for example in examples])
        return batch


def generate_dataset(
    path: Source,
    tokenizer: PreTrainedTokenizerBase,
    max_len: int = 128,
    target_column: str | None = None,
) -> Dataset:
    """Read pairs from the columns `chosen` and `rejected`, or texts with numbers.

    Args:
        target_column: Column of the numbers; the texts are read from the column `text`. If None,
            read pairs.

    Raises:
        DataError: The file cannot be read, or a target is not a number.
    """
    names = ["chosen", "rejected"] if target_column is None else ["text"]
    table = read_table(path, names if target_column is None else [*names, target_column])
    texts = {
        name: tokenizer(list(table[name]), truncation=True, max_length=max_len).input_ids
        for name in names
    }
    schema = {"target_column": target_column}
    if target_column is None:
        return Dataset(texts, None, schema, tokenizer)
    targets = []
    for index, value in enumerate(table[target_column]):
        try:
            targets.append(float(value))
        except ValueError:
            where = locate_row(path, index)
            raise DataError(f"{where}: {target_column} {value!r}; expected a number") from None
    return Dataset(texts, targets, schema, tokenizer)
