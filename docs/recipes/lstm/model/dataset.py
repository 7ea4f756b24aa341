"""Read texts as bytes, without a tokenizer."""

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from reading.sources import Source
from reading.tables import read_table

END = 256
PAD = 257


class Dataset(torch.utils.data.Dataset):
    """Texts as bytes. The input starts with END, and the labels end with END."""

    def __init__(self, texts: list[bytes]):
        self.texts = texts
        self.lengths = np.array([len(text) + 1 for text in texts])
        self.num_items = self.lengths

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        values = list(self.texts[index])
        return {"input_ids": torch.tensor([END, *values]), "labels": torch.tensor([*values, END])}

    def collate(self, examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {
            name: pad_sequence([example[name] for example in examples], True, fill)
            for name, fill in (("input_ids", PAD), ("labels", -100))
        }


def generate_dataset(path: Source, max_len: int = 128) -> Dataset:
    """Read the column `text`; truncate each text to `max_len` bytes."""
    return Dataset([text.encode()[:max_len] for text in read_table(path, ["text"])["text"]])
