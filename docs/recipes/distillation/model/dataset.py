"""Read texts without labels."""

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from reading.sources import Source
from reading.tables import read_table


class Dataset(torch.utils.data.Dataset):
    """Tokenized texts."""

    def __init__(self, tokens: list[list[int]], tokenizer: PreTrainedTokenizerBase):
        self.tokens = tokens
        self.tokenizer = tokenizer
        self.lengths = np.array([len(ids) for ids in tokens])

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {"input_ids": self.tokens[index]}

    def collate(self, examples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        return dict(self.tokenizer.pad(examples, return_tensors="pt"))


def generate_dataset(
    path: Source, tokenizer: PreTrainedTokenizerBase, max_len: int = 128
) -> Dataset:
    """Read the column `text`; truncate each text to `max_len` tokens."""
    texts = list(read_table(path, ["text"])["text"])
    return Dataset(tokenizer(texts, truncation=True, max_length=max_len).input_ids, tokenizer)
