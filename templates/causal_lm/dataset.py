"""The data: texts, joined end to end and cut into blocks."""

from pathlib import Path

import datasets
import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from reading import DataError, pad, read_table, tokenized

from .configuration import BASE_MODEL

COLUMNS = {"text_column": "text"}


class Dataset(torch.utils.data.Dataset):
    """Blocks of tokens.

    A block begins with the last token of the one before, so that every token but the very first
    is predicted exactly once. The last block may be shorter.

    Attributes:
        lengths: Tokens of each block, shape (n,); like lengths are batched together.
        num_items: Tokens to predict in each block, shape (n,); the loss is averaged over these.
        schema: How the file was read. Given to `generate_dataset`, it reads another file in the
            same way; given to `ModelConfig`, it is kept with the model.
    """

    def __init__(
        self, rows: datasets.Dataset, schema: dict, pad_token_id: int | None, max_len: int
    ):
        self.rows = rows
        chunks = rows.data.column("input_ids").chunks
        self.starts = np.cumsum([0] + [len(chunk.flatten()) for chunk in chunks])
        tokens = self.starts[-1]
        self.begins = np.arange(0, tokens - 1, max_len - 1)
        self.lengths = np.minimum(self.begins + max_len, tokens) - self.begins
        self.num_items = self.lengths - 1
        self.schema = schema
        self.pad_token_id = pad_token_id or 0  # any id will do: the mask hides it

    def __len__(self) -> int:
        return len(self.begins)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(self._tokens(self.begins[index], self.lengths[index]))
        labels = ids.clone()
        labels[0] = -100  # nothing stands before it; transformers.Trainer counts what is not -100
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    def _tokens(self, begin: int, length: int) -> np.ndarray:
        """Read a slice of the joined texts, which lie in chunks, without leaving the disk map."""
        column, parts = self.rows.data.column("input_ids"), []
        chunk = int(np.searchsorted(self.starts, begin, side="right")) - 1
        while length > 0:
            part = column.chunk(chunk).flatten()[begin - self.starts[chunk] :][:length].to_numpy()
            parts.append(part)
            begin, length, chunk = begin + len(part), length - len(part), chunk + 1
        return np.concatenate(parts).astype(np.int64)

    def collate(self, examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Stack the blocks, a short last one padded: three tensors of shape (batch, length)."""
        return {
            "input_ids": pad(examples, "input_ids", self.pad_token_id),
            "attention_mask": pad(examples, "attention_mask", 0),
            "labels": pad(examples, "labels", -100),
        }


def generate_dataset(
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_len: int = 128,
    *,
    text_column: str = COLUMNS["text_column"],
) -> Dataset:
    """Read a file of texts: an end mark follows each, and all are joined and cut into blocks.

    Args:
        path: JSON lines, CSV, TSV or Parquet, a document per row; or plain text, which is one
            document and gets no end mark.
        tokenizer: The base model's own when not given.
        max_len: Tokens in a block, at least 2.
        text_column: The column that holds the text.

    Raises:
        DataError: the file cannot be read, or holds fewer than two tokens.
    """
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(BASE_MODEL)
    table = read_table(path, [text_column])
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    is_one_text = Path(path).suffix == ".txt"

    def encode(batch: dict[str, list]) -> dict[str, list]:
        texts = tokenizer(batch[text_column], add_special_tokens=not is_one_text, verbose=False)
        if is_one_text:
            return {"input_ids": texts["input_ids"]}
        return {"input_ids": [i if i[-1:] == [end] else [*i, end] for i in texts["input_ids"]]}

    rows = tokenized(table, encode, tokenizer)
    dataset = Dataset(rows, {"text_column": text_column}, tokenizer.pad_token_id, max_len)
    if len(dataset) == 0:
        raise DataError(f"{path}: fewer than two tokens; expected text to learn from")
    return dataset
