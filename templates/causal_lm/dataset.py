"""Read texts, tokenize them, join them and cut them into blocks."""

import zlib
from collections.abc import Iterator

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from errors import DataError
from reading.examples import describe_examples
from reading.faults import Rows
from reading.sources import Source
from reading.tables import is_plain_text, read_table
from reading.tokens import CHECKSUM, fingerprint, pad, tokenize

from .configuration import BASE_MODEL

# Arguments of generate_dataset that train.py offers on its command line.
OPTIONS: dict[str, dict] = {
    "text_column": {"default": "text", "help": "column of the texts"},
    "separate_documents": {"action": "store_true", "help": "mask attention across documents"},
}


class Dataset(torch.utils.data.Dataset):
    """Blocks of tokens.

    A block begins with the last token of the previous block, so that every token is predicted
    exactly once, except the first token of the data or, with `separate_documents`, of each
    document. The last block may be shorter.

    Attributes:
        lengths: Number of tokens of each block, shape (n,). Blocks of similar length are batched
            together.
        num_items: Number of tokens to predict in each block, shape (n,). The loss is averaged over
            these tokens.
        schema: Keyword arguments with which `generate_dataset` reads another file as it has read
            this one.
        fingerprint: Hash of the tokens, `max_len` and `schema`, the same on every machine.
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
        chunks = rows.data.column("input_ids").chunks
        self.starts = np.cumsum([0] + [len(chunk.flatten()) for chunk in chunks])
        tokens = self.starts[-1]
        self.begins = np.arange(0, tokens - 1, max_len - 1)
        self.lengths = np.minimum(self.begins + max_len, tokens) - self.begins
        self.num_items = self.lengths - 1
        self.documents = np.empty(0, dtype=np.int64)  # starts of documents, if they are separate
        self.notes = []
        if schema["separate_documents"] and is_plain_text(origin.source):
            self.notes.append(f"{origin.source} is one text: --separate_documents has no effect")
        elif schema["separate_documents"]:
            lengths = [chunk.value_lengths().to_numpy() for chunk in chunks]
            self.documents = np.cumsum(np.concatenate([[0], *lengths]))[:-1]
            # Blocks in which the first token of a document would be a target.
            blocks = (self.documents[1:] - 1) // (max_len - 1)
            self.num_items -= np.bincount(blocks, minlength=len(self.begins))
        self.schema = schema
        self.fingerprint = zlib.crc32(repr((max_len, schema)).encode(), fingerprint(rows))
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self.begins)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        begin = self.begins[index]
        length = self.lengths[index]
        ids = torch.from_numpy(self._tokens(begin, length))
        labels = ids.clone()
        labels[0] = -100  # not predicted, so transformers.Trainer must not count it as a target
        if not self.schema["separate_documents"]:
            return {"input_ids": ids, "labels": labels}
        first, last = np.searchsorted(self.documents, [begin + 1, begin + length])
        starts = np.concatenate([[0], self.documents[first:last] - begin])
        labels[starts] = -100
        # If positions restart at 0 at each of `starts`, transformers masks attention across them.
        positions = np.arange(length)
        positions -= np.repeat(starts, np.diff(starts, append=length))
        return {"input_ids": ids, "labels": labels, "position_ids": torch.from_numpy(positions)}

    def _tokens(self, begin: int, length: int) -> np.ndarray:
        """Read a slice of the joined texts from the chunks of the memory-mapped table."""
        column = self.rows.data.column("input_ids")
        parts: list[np.ndarray] = []
        chunk = int(np.searchsorted(self.starts, begin, side="right")) - 1
        while length > 0:
            parts.append(column.chunk(chunk).flatten()[begin - self.starts[chunk] :][:length])
            begin += len(parts[-1])
            length -= len(parts[-1])
            chunk += 1
        return np.concatenate(parts).astype(np.int64)

    def collate(self, examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Pad on the right to the longest block; return tensors of shape (batch, length)."""
        fill = {"input_ids": self.tokenizer.pad_token_id or 0, "labels": -100, "position_ids": 0}
        return {key: pad(examples, key, fill[key])[0] for key in examples[0]}

    def describe(self) -> Iterator[str]:
        """Yield lines that show a few blocks."""
        yield from describe_examples(self, self._decode)

    def faults(self, train: "Dataset | None" = None) -> Iterator[str]:
        """Yield lines about texts that may be wrong.

        Args:
            train: Training data, if this data set is validation data.
        """
        if is_plain_text(self.origin.source):  # a row is a line, not a document
            return
        yield from self.origin.empty(self.schema["text_column"])
        yield from self.origin.doubled("input_ids", self.tokenizer)
        documents, *others = (
            data.rows.data.column(CHECKSUM).to_numpy() for data in (self, train) if data is not None
        )
        yield from self.origin.repeated(documents, others[0] if others else None)

    def _decode(self, example: dict[str, torch.Tensor]) -> tuple[str, str]:
        labels = example["labels"]
        targets = labels[labels != -100]
        return self.tokenizer.decode(example["input_ids"]), self.tokenizer.decode(targets)


def generate_dataset(
    path: Source,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_len: int = 128,
    *,
    text_column: str = OPTIONS["text_column"]["default"],
    separate_documents: bool = False,
) -> Dataset:
    """Read a file of texts, join their tokens, and cut these into blocks.

    Each text except plain text ends with the EOS token or, if the tokenizer has none, with the
    separator.

    Args:
        path: A source that `read_table` reads, with one document per row; or plain text, which is
            a single document without an end-of-sequence token.
        tokenizer: Default: the tokenizer of the default base model.
        max_len: Maximum number of tokens in a block; at least 2.
        text_column: Column of the texts.
        separate_documents: Whether attention is masked across documents. The first token of each
            document is then not a target.

    Raises:
        DataError: The file cannot be read or has no token to predict, or the file is not plain text
            and the tokenizer has neither an EOS token nor a separator.
    """
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(BASE_MODEL)
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    is_one_text = is_plain_text(path)
    if end is None and not is_one_text:
        raise DataError("the tokenizer has neither eos_token nor sep_token; expected one of them")
    table = read_table(path, [text_column])

    def encode(batch: dict[str, list]) -> dict[str, list]:
        texts = tokenizer(batch[text_column], add_special_tokens=not is_one_text, verbose=False)
        if is_one_text:
            return {"input_ids": texts["input_ids"]}
        return {"input_ids": [i if i[-1:] == [end] else [*i, end] for i in texts["input_ids"]]}

    rows = tokenize(table, encode, tokenizer)
    schema = {"text_column": text_column, "separate_documents": separate_documents}
    dataset = Dataset(Rows(path, table, rows), schema, tokenizer, max_len)
    if dataset.num_items.sum() == 0:
        raise DataError(f"{path}: no token to predict; expected a text of at least two tokens")
    return dataset
