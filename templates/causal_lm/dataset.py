"""The data: texts, joined end to end and cut into blocks."""

import datasets
import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from errors import DataError
from reading.tables import Source, is_plain_text, read_table
from reading.tokens import pad, tokenized

from .configuration import BASE_MODEL

# Arguments of generate_dataset that train.py offers on its command line.
OPTIONS: dict[str, dict] = {
    "text_column": {"default": "text", "help": "column of both files"},
    "separate_documents": {"action": "store_true", "help": "hide a document's text from the next"},
}


class Dataset(torch.utils.data.Dataset):
    """Blocks of tokens.

    A block begins with the last token of the one before, so that every token but the very first
    is predicted exactly once. The last block may be shorter.

    Attributes:
        lengths: Tokens of each block, shape (n,); like lengths are batched together.
        num_items: Tokens to predict in each block, shape (n,); the loss is averaged over these.
        schema: How the file was read, to read another alike, and for `ModelConfig` to keep.
    """

    def __init__(self, rows: datasets.Dataset, schema: dict, pad_id: int | None, max_len: int):
        self.rows = rows
        chunks = rows.data.column("input_ids").chunks
        self.starts = np.cumsum([0] + [len(chunk.flatten()) for chunk in chunks])
        tokens = self.starts[-1]
        self.begins = np.arange(0, tokens - 1, max_len - 1)
        self.lengths = np.minimum(self.begins + max_len, tokens) - self.begins
        self.num_items = self.lengths - 1
        self.documents = np.empty(0, dtype=np.int64)  # where those begin that are to be separate
        if schema["separate_documents"]:
            lengths = [chunk.value_lengths().to_numpy() for chunk in chunks]
            self.documents = np.cumsum(np.concatenate([[0], *lengths]))[:-1]
            blocks = (self.documents[1:] - 1) // (max_len - 1)  # whose targets they would be
            self.num_items -= np.bincount(blocks, minlength=len(self.begins))
        self.schema = schema
        self.fill = {"input_ids": pad_id or 0, "labels": -100, "position_ids": 0}

    def __len__(self) -> int:
        return len(self.begins)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        begin, length = self.begins[index], self.lengths[index]
        ids = torch.from_numpy(self._tokens(begin, length))
        labels = ids.clone()
        labels[0] = -100  # nothing stands before it; transformers.Trainer counts what is not -100
        if not self.schema["separate_documents"]:
            return {"input_ids": ids, "labels": labels}
        first, last = np.searchsorted(self.documents, [begin + 1, begin + length])
        starts = np.concatenate([[0], self.documents[first:last] - begin])
        labels[starts] = -100
        # Where positions begin again, transformers lets attention begin again.
        positions = np.arange(length)
        positions -= np.repeat(starts, np.diff(starts, append=length))
        return {"input_ids": ids, "labels": labels, "position_ids": torch.from_numpy(positions)}

    def _tokens(self, begin: int, length: int) -> np.ndarray:
        """Read a slice of the joined texts, which lie in chunks, without leaving the disk map."""
        column, parts = self.rows.data.column("input_ids"), []
        chunk = int(np.searchsorted(self.starts, begin, side="right")) - 1
        while length > 0:
            parts.append(column.chunk(chunk).flatten()[begin - self.starts[chunk] :][:length])
            begin, length, chunk = begin + len(parts[-1]), length - len(parts[-1]), chunk + 1
        return np.concatenate(parts).astype(np.int64)

    def collate(self, examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Stack the blocks: (batch, length). A short one is padded where nothing looks."""
        return {key: pad(examples, key, self.fill[key])[0] for key in examples[0]}


def generate_dataset(
    path: Source,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_len: int = 128,
    *,
    text_column: str = OPTIONS["text_column"]["default"],
    separate_documents: bool = False,
) -> Dataset:
    """Read a file of texts: an end mark follows each, and all are joined and cut into blocks.

    Args:
        path: What `read_table` reads, a document per row; or plain text, which is one document
            and gets no end mark.
        tokenizer: The base model's own when not given.
        max_len: Tokens in a block, at least 2.
        text_column: The column that holds the text.
        separate_documents: Whether each sees itself alone, from its second token on predicted.

    Raises:
        DataError: the file cannot be read, or holds no token to predict.
    """
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(BASE_MODEL)
    table = read_table(path, [text_column])
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    is_one_text = is_plain_text(path)

    def encode(batch: dict[str, list]) -> dict[str, list]:
        texts = tokenizer(batch[text_column], add_special_tokens=not is_one_text, verbose=False)
        if is_one_text:
            return {"input_ids": texts["input_ids"]}
        return {"input_ids": [i if i[-1:] == [end] else [*i, end] for i in texts["input_ids"]]}

    rows = tokenized(table, encode, tokenizer)
    schema = {"text_column": text_column, "separate_documents": separate_documents}
    dataset = Dataset(rows, schema, tokenizer.pad_token_id, max_len)
    if dataset.num_items.sum() == 0:
        raise DataError(f"{path}: fewer than two tokens; expected text to learn from")
    return dataset
