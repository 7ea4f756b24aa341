"""The data: a text, or two, and what it is labelled with, per example."""

import datasets
import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from errors import DataError
from reading.tables import Source, distinct, read_table, row_with
from reading.tokens import column, pad, tokenized

from .configuration import BASE_MODEL, label_encoder, problem_of

# Arguments of generate_dataset that train.py offers on its command line.
OPTIONS: dict[str, dict] = {
    "text_column": {"default": "text", "help": "column of both files"},
    "pair_column": {"help": "column of a second text, where they come in pairs"},
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
        self.rows = rows
        self.columns = {name: column(rows, name) for name in rows.column_names if name != "length"}
        self.lengths = rows.data.column("length").to_numpy()
        self.num_items = np.broadcast_to(np.int64(1), len(rows))
        self.schema = schema
        self.pad_token_id = pad_token_id or 0  # any id will do: the mask hides it

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, torch.Tensor]]:
        rows = zip(*(values[indices] for values in self.columns.values()), strict=True)
        return [dict(zip(self.columns, row, strict=True)) for row in rows]

    def collate(self, examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Pad to the longest: (batch, length); labels (batch,), of several (batch, labels)."""
        batch = {"labels": torch.stack([example["labels"] for example in examples])}
        if "token_type_ids" in examples[0]:
            batch["token_type_ids"], _ = pad(examples, "token_type_ids", 0)
        batch["input_ids"], batch["attention_mask"] = pad(examples, "input_ids", self.pad_token_id)
        return batch


def generate_dataset(
    path: Source,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_len: int = 128,
    *,
    text_column: str = OPTIONS["text_column"]["default"],
    pair_column: str | None = None,
    label_column: str = OPTIONS["label_column"]["default"],
    labels: list[str] | None = None,
    problem_type: str | None = None,
) -> Dataset:
    """Read a file of labelled texts.

    Args:
        path: JSON lines, CSV, TSV or Parquet; see `read_table` for all that may stand here.
        tokenizer: The base model's own when not given.
        max_len: Longer texts, or pairs of them, are cut to this many tokens.
        text_column: The column that holds the text.
        pair_column: The column that holds the second text of a pair.
        label_column: The column that holds the label: text or number, or a list of them; numbers
            with fractions are values to predict.
        labels: The label names to expect, in the order of their ids; those found in the file,
            sorted, when not given.
        problem_type: What the labels are, as `problem_of` says; found in the file when not given.

    Raises:
        DataError: the file cannot be read, or holds a label that is not one of `labels`.
    """
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(BASE_MODEL)
    texts = [text_column] if pair_column is None else [text_column, pair_column]
    table = read_table(path, [*texts, label_column], lists=[label_column])
    found, is_list = distinct(table, label_column)
    problem_type = problem_type or problem_of(found, is_list)
    labels = labels or ([label_column] if problem_type == "regression" else found)
    if problem_type == "multi_label_classification" and len(labels) < 2:
        raise DataError(f"{path}: {len(labels)} label in {label_column!r}; expected at least 2")
    encode_label = label_encoder(problem_type, labels)
    for name in found:
        try:
            encode_label([name] if is_list else name)
        except (KeyError, TypeError, ValueError):
            where, known = row_with(path, table, label_column, name), ", ".join(labels)
            expected = "a number" if problem_type == "regression" else f"one of {known}"
            raise DataError(f"{where}: unknown label {name!r}; expected {expected}") from None

    def encode(batch: dict[str, list]) -> dict[str, list]:
        types = None if pair_column else False  # None: those of the tokenizer, if it has any
        cut = {"truncation": True, "max_length": max_len, "return_attention_mask": False}
        tokens = tokenizer(*(batch[n] for n in texts), **cut, return_token_type_ids=types)
        labels, lengths = map(encode_label, batch[label_column]), map(len, tokens["input_ids"])
        return {**tokens, "labels": list(labels), "length": list(lengths)}

    rows = tokenized(table, encode, tokenizer)
    schema: dict = {"text_column": text_column, "pair_column": pair_column}
    schema |= {"label_column": label_column, "labels": labels, "problem_type": problem_type}
    return Dataset(rows, schema, tokenizer.pad_token_id)
