"""Read labelled texts, or pairs of texts, and tokenize them."""

import dataclasses
import zlib
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from errors import DataError
from reading.examples import describe_counts, describe_examples, describe_weights
from reading.faults import Rows
from reading.locate import locate_row, locate_value
from reading.sources import Source
from reading.tables import distinct, read_table
from reading.tokens import CHECKSUM, column, fill_empty, fingerprint, pad, tokenize

from .configuration import BASE_MODEL, infer_problem_type, label_encoder

# Arguments of generate_dataset that train.py offers on its command line.
OPTIONS: dict[str, dict] = {
    "text_column": {"default": "text", "help": "column of the texts"},
    "pair_column": {"help": "column of the second text of a pair"},
    "label_column": {"default": "label", "help": "column of the labels"},
    "class_weight": {
        "choices": ["balanced"],
        "metavar": "NAME",
        "help": "balanced: weight labels by inverse frequency, also in validation",
    },
}


class Dataset(torch.utils.data.Dataset):
    """Tokenized examples.

    Attributes:
        lengths: Number of tokens of each example, shape (n,). Examples of similar length are
            batched together.
        num_items: 1 for each example, or the weight of its label, shape (n,). The mean loss is the
            sum of the losses divided by the sum of `num_items`.
        schema: Keyword arguments with which `generate_dataset` reads another file as it has read
            this one. `labels` and `problem_type` are also passed to `ModelConfig`.
        checksums: Checksum of each example, shape (n,). Without `--valid_input`, the checksum
            determines whether the example is held out for validation.
        fingerprint: Hash of the tokens, labels and weights, the same on every machine.
        notes: A line with the weights of the labels, if they have any.
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
        self.max_len = max_len
        names = [name for name in rows.column_names if name not in ("length", CHECKSUM)]
        self.columns = {name: column(rows, name) for name in names}
        self.lengths = rows.data.column("length").to_numpy()
        self.num_items = np.broadcast_to(np.int64(1), len(rows))
        self.schema = schema
        self.fingerprint = fingerprint(rows)
        self.notes: list[str] = []
        self.class_weights: torch.Tensor | None = None
        if schema["class_weights"]:
            self._use_weights(np.array(schema["class_weights"]))
        self.checksums = rows.data.column(CHECKSUM).to_numpy()
        self.tokenizer = tokenizer

    def _use_weights(self, weights: np.ndarray) -> None:
        """Weight the examples by their labels; `weights` has the shape (labels,)."""
        self.num_items = weights[self.rows.data.column("labels").to_numpy()]
        self.fingerprint = zlib.crc32(weights.tobytes(), self.fingerprint)
        self.class_weights = torch.from_numpy(weights).float()
        self.notes.append(describe_weights(self.schema["labels"], weights))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, torch.Tensor]]:
        rows = zip(*(values[indices] for values in self.columns.values()), strict=True)
        return [dict(zip(self.columns, row, strict=True)) for row in rows]

    def collate(self, examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Pad the tokens to the longest example, and stack the labels.

        Tokens have the shape (batch, length); labels have the shape (batch,) or, for lists of
        labels, (batch, labels). `class_weights`, if the labels have weights, have the shape
        (labels,) and are the same in each batch.
        """
        batch = {"labels": torch.stack([example["labels"] for example in examples])}
        if self.class_weights is not None:
            batch["class_weights"] = self.class_weights
        if "token_type_ids" in examples[0]:
            batch["token_type_ids"], _ = pad(examples, "token_type_ids", 0)
        pad_id = self.tokenizer.pad_token_id or 0  # any id, since padding is masked
        batch["input_ids"], batch["attention_mask"] = pad(examples, "input_ids", pad_id)
        return batch

    def describe(self) -> Iterator[str]:
        """Yield lines that show the labels and a few examples."""
        labels = self.rows.data.column("labels")
        if self.schema["problem_type"] == "regression":
            values = labels.to_numpy()
            yield f"values: {values.min():.6g} to {values.max():.6g}, mean {values.mean():.6g}"
        else:
            names = self.schema["labels"]
            yield describe_counts(dict(zip(names, _count(labels, len(names)), strict=True)))
        yield from describe_examples(self, self._decode)

    def faults(self, train: "Dataset | None" = None) -> Iterator[str]:
        """Yield lines about rows that may be wrong.

        Args:
            train: Training data, if this data set is validation data.
        """
        columns = [self.schema["text_column"], self.schema["pair_column"]]
        texts = [name for name in columns if name is not None]
        for name in texts:
            yield from self.origin.empty(name)

        def encode(batch: dict[str, list]) -> list[list]:
            return self.tokenizer(*(batch[name] for name in texts), verbose=False)["input_ids"]

        full = np.flatnonzero(self.lengths >= self.max_len)
        yield from self.origin.cut("texts", full, self.max_len, encode)
        yield from self.origin.doubled("input_ids", self.tokenizer)
        yield from self.origin.repeated(self.checksums, None if train is None else train.checksums)
        yield from self.origin.contradictory("input_ids", self.checksums)
        yield from self._faults_of_labels(is_train=train is None)

    def _faults_of_labels(self, is_train: bool) -> Iterator[str]:
        names = self.schema["labels"]
        labels = self.rows.data.column("labels")
        if self.schema["problem_type"] == "regression":
            return
        if not pa.types.is_nested(labels.type):
            rows = np.arange(len(self))
            found = labels.to_numpy()
        else:
            chunks = (chunk.flatten().to_numpy().reshape(-1, len(names)) for chunk in labels.chunks)
            matrix = np.concatenate(list(chunks))
            rows, found = np.nonzero(matrix)
            yield from self.origin.line("without a label", np.flatnonzero(~matrix.any(1)))
        if is_train:
            yield from self.origin.single_labels(names, found, rows)

    def _decode(self, example: dict[str, Any]) -> tuple[str, str]:
        names = self.schema["labels"]
        labels = example["labels"]
        if self.schema["problem_type"] == "regression":
            target = str(labels.item())
        elif labels.ndim == 0:
            target = names[labels]
        else:
            target = ", ".join(names[index] for index in labels.nonzero().flatten())
        return self.tokenizer.decode(example["input_ids"]), target


def _count(labels: pa.ChunkedArray, count: int) -> list[int]:
    """Count the examples of each label."""
    if not pa.types.is_nested(labels.type):
        return np.bincount(labels.to_numpy(), minlength=count).tolist()
    chunks = (chunk.flatten().to_numpy().reshape(-1, count) for chunk in labels.chunks)
    return sum(chunk.sum(0) for chunk in chunks).astype(int).tolist()


@dataclasses.dataclass(frozen=True)
class Schema:
    """Settings with which a data file is read.

    Attributes:
        text_column: Column of the texts.
        pair_column: Column of the second text of a pair.
        label_column: Column of the labels: texts or numbers, or lists of them. If numbers have
            fractions, they are values to predict (regression).
        labels: The label names in the order of their ids. Default: those in the file, sorted; in
            regression, the name of the column.
        problem_type: The type of labels. Default: inferred from the file; see
            `infer_problem_type`.
        class_weight: "balanced" to weight the loss of each example by its label.
        class_weights: The weight of each label. Default: computed from the file by `weigh`, if
            `class_weight` is given.
    """

    text_column: str = OPTIONS["text_column"]["default"]
    pair_column: str | None = None
    label_column: str = OPTIONS["label_column"]["default"]
    labels: list[str] = dataclasses.field(default_factory=list)
    problem_type: str = ""
    class_weight: str | None = None
    class_weights: list[float] = dataclasses.field(default_factory=list)

    def complete(self, path: Source, table: datasets.Dataset) -> "Schema":
        """Infer `labels` and `problem_type` from the table if they are missing; check its labels.

        Raises:
            DataError: A label is unknown; there are fewer than two labels, except in regression; or
                `class_weight` is given for lists of labels or for regression.
        """
        found, is_list = distinct(table, self.label_column)
        kind = self.problem_type or infer_problem_type(found, is_list)
        labels = self.labels or ([self.label_column] if kind == "regression" else found)
        if kind != "regression" and len(labels) < 2:
            what = f"{len(labels)} label in {self.label_column!r}"
            raise DataError(f"{path}: {what}; expected at least 2")
        if self.class_weight is not None and kind != "single_label_classification":
            raise DataError(
                f"{path}: {self.label_column!r} is for {kind}; --class_weight {self.class_weight} "
                "expects single_label_classification"
            )
        encode_label = label_encoder(kind, labels)
        for name in found:
            try:
                encode_label([name] if is_list else name)
            except (KeyError, TypeError, ValueError):
                where = locate_value(path, table, self.label_column, name)
                known = "a number" if kind == "regression" else f"one of {', '.join(labels)}"
                raise DataError(f"{where}: unknown label {name!r}; expected {known}") from None
        return dataclasses.replace(self, labels=labels, problem_type=kind)

    def weigh(self, path: Source, labels: pa.ChunkedArray) -> "Schema":
        """Compute `class_weights` if they are missing and `class_weight` is given.

        The weight of a label is (number of examples) / (number of labels * number of examples with
        this label).

        Args:
            labels: The label id of each example.

        Raises:
            DataError: A label has no example.
        """
        if self.class_weight is None or self.class_weights:
            return self
        counts = _count(labels, len(self.labels))
        if 0 in counts:
            raise DataError(
                f"{path}: no example of the label {self.labels[counts.index(0)]!r}; --class_weight "
                f"{self.class_weight} expects at least one example of each label"
            )
        weights = [len(labels) / (len(counts) * count) for count in counts]
        return dataclasses.replace(self, class_weights=weights)


def generate_dataset(
    path: Source,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_len: int = 128,
    **schema: Any,
) -> Dataset:
    """Read a file of labelled texts.

    Args:
        path: A JSON, CSV, TSV or Parquet file, or another source: see `read_table`.
        tokenizer: Default: the tokenizer of the default base model.
        max_len: Longer texts, or pairs of texts, are truncated to this number of tokens.
        schema: Attributes of `Schema`.

    Raises:
        DataError: The file cannot be read, or has a label that is not one of `labels` (in
            regression: not a number), fewer than two labels (except in regression), labels that
            cannot be weighted, or a text without tokens.
    """
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(BASE_MODEL)
    given = Schema(**schema)
    label_column = given.label_column
    pair_column = given.pair_column
    texts = [given.text_column] if pair_column is None else [given.text_column, pair_column]
    table = read_table(path, [*texts, label_column], lists=[label_column])
    complete = given.complete(path, table)
    encode_label = label_encoder(complete.problem_type, complete.labels)

    def encode(batch: dict[str, list]) -> dict[str, list]:
        types = None if pair_column else False  # None: the tokenizer's default
        cut = {"truncation": True, "max_length": max_len, "return_attention_mask": False}
        tokens = tokenizer(*(batch[n] for n in texts), **cut, return_token_type_ids=types)
        fill_empty(tokens, tokenizer)
        labels = [encode_label(label) for label in batch[label_column]]
        return {**tokens, "labels": labels, "length": [len(ids) for ids in tokens["input_ids"]]}

    rows = tokenize(table, encode, tokenizer)
    complete = complete.weigh(path, rows.data.column("labels"))
    origin = Rows(path, table, rows)
    dataset = Dataset(origin, dataclasses.asdict(complete), tokenizer, max_len)
    if dataset.lengths[empty := int(dataset.lengths.argmin())] == 0:
        where = locate_row(path, empty)
        raise DataError(f"{where}: {table[empty][texts[0]]!r} has no tokens; expected text")
    return dataset
