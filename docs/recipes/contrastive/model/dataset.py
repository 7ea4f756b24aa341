"""Read pairs of similar texts."""

import zlib
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from reading.sources import Source
from reading.tables import read_table

SIDES = ("anchor", "positive")


class Dataset(torch.utils.data.Dataset):
    """Tokenized pairs, without `lengths`: negatives of similar length would bias the loss."""

    def __init__(self, table: Any, tokenizer: PreTrainedTokenizerBase, max_len: int):
        self.tokenizer = tokenizer
        self.tokens = {
            side: tokenizer(list(table[side]), truncation=True, max_length=max_len).input_ids
            for side in SIDES
        }
        self.keys = [zlib.crc32(text.encode()) for text in table["positive"]]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**{side: self.tokens[side][index] for side in SIDES}, "key": self.keys[index]}

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = {"key": torch.tensor([example["key"] for example in examples])}
        for side in SIDES:
            ids = {"input_ids": [example[side] for example in examples]}
            batch[side] = dict(self.tokenizer.pad(ids, return_tensors="pt"))
        return batch


def generate_dataset(
    path: Source, tokenizer: PreTrainedTokenizerBase, max_len: int = 128
) -> Dataset:
    """Read the columns `anchor` and `positive`."""
    return Dataset(read_table(path, list(SIDES)), tokenizer, max_len)
