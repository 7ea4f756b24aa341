"""Read texts with entities, or words with labels, and tokenize them."""

import dataclasses
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from errors import DataError
from reading.alignment import TokenLabels, items, label_tokens, parse_row
from reading.entities import OUTSIDE, PREFIXED, entities_of, uses_prefixes
from reading.examples import describe_counts, describe_examples, describe_weights
from reading.faults import Rows, values_of
from reading.locate import locate_row
from reading.sources import Source
from reading.tables import column_names, read_table
from reading.tokens import CHECKSUM, column, fingerprint, pad, tokenize
from reading.windows import tokenize_in_windows

from .configuration import BASE_MODEL

# Arguments of generate_dataset that train.py offers on its command line.
OPTIONS: dict[str, dict] = {
    "words_column": {"default": "words", "help": "column of the words"},
    "labels_column": {"default": "labels", "help": "column of the labels, one for each word"},
    "text_column": {"help": "column of texts with entities (default: text, if there are no words)"},
    "spans_column": {"help": "column of the entities (default: spans or entities)"},
    "class_weight": {
        "choices": ["balanced"],
        "metavar": "NAME",
        "help": "balanced: weight labels by inverse frequency, also in validation",
    },
}
TEXT = "text"
SPANS = ("spans", "entities")
SHOWN = 24  # maximum number of tokens or labels to print
# Differences between the labels of a file and those of the tokens. The keys are columns of the
# tokenized rows.
CHANGES = {
    "converted": "rows whose labels are converted to BIO from another scheme",
    "widened": "entities that begin or end inside a token, and are widened to whole tokens",
    "lost": "entities without a token, which are ignored",
    "divided": "divisions of entities that are longer than the overlap of two windows",
}


@dataclasses.dataclass(frozen=True)
class Schema:
    """Settings with which a data file is read.

    Attributes:
        words_column: Column of the words: a list, or a text with spaces between the words.
        labels_column: Column of the labels of the words: a list, or a text with spaces between the
            labels.
        text_column: Column of the texts, if entities are given as character offsets; None if words
            are read. Default: see `with_columns_of`.
        spans_column: Column of the entities of a text: a list of objects with `start`, `end`
            (exclusive) and `label`, or of lists of these values; None if words are read.
        labels: The label names in the order of their ids. Default: see `labels_from`.
        class_weight: "balanced" to weight the loss of each token by its label.
        class_weights: The weight of each label. Default: computed from the file by `weigh`, if
            `class_weight` is given.
    """

    words_column: str = OPTIONS["words_column"]["default"]
    labels_column: str = OPTIONS["labels_column"]["default"]
    text_column: str | None = None
    spans_column: str | None = None
    labels: list[str] = dataclasses.field(default_factory=list)
    class_weight: str | None = None
    class_weights: list[float] = dataclasses.field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """The columns to read: texts and entities, or words and labels."""
        if self.text_column is not None and self.spans_column is not None:
            return [self.text_column, self.spans_column]
        return [self.words_column, self.labels_column]

    def with_columns_of(self, path: Source) -> "Schema":
        """Set both `text_column` and `spans_column` if one is given or the file has such columns.

        Raises:
            DataError: The file cannot be read; or neither column is given, and the file has both
                words and texts with entities.
        """
        names = column_names(path)
        text = self.text_column or TEXT
        spans = self.spans_column or next((name for name in SPANS if name in names), SPANS[0])
        has_words = {self.words_column, self.labels_column} <= {*names}
        has_spans = {text, spans} <= {*names}
        if self.text_column is None and self.spans_column is None:
            if has_words and has_spans:
                raise DataError(
                    f"{path}: has the columns {self.words_column!r} and {text!r}; expected one of "
                    f"them, or --text_column {text}"
                )
            if not has_spans:
                return self
        return dataclasses.replace(self, text_column=text, spans_column=spans)

    def with_labels_of(self, path: Source, rows: datasets.Dataset) -> "Schema":
        """Set `labels`, if they are missing, to those that `labels_from` returns for the file.

        Args:
            rows: The results of `check_row`, in the columns `names` and `fault`.

        Raises:
            DataError: A row is malformed, or has a label that is not one of `labels`; or see
                `labels_from`.
        """
        faults = rows.data.column("fault")
        if (row := pc.index(pc.not_equal(faults, ""), True).as_py()) >= 0:
            raise DataError(f"{locate_row(path, row)}: {faults[row]}")
        cells = pc.unique(rows.data.column("names")).to_pylist()
        found = {name for cell in cells for name in json.loads(cell)}
        labels = self.labels or labels_from(path, found)
        if unknown := sorted(name for name in found if not is_known(name, labels)):
            having = (unknown[0] in json.loads(cell) for cell in rows["names"])
            where = locate_row(path, next(row for row, has in enumerate(having) if has))
            expected = ", ".join(name for name in labels if not name.startswith("I-"))
            raise DataError(f"{where}: unknown label {unknown[0]!r}; expected one of {expected}")
        return dataclasses.replace(self, labels=labels)

    def weigh(self, rows: datasets.Dataset) -> "Schema":
        """Compute `class_weights` if they are missing and `class_weight` is given.

        The weight of a label is (number of labelled tokens) / (number of labels * number of tokens
        with this label). A label without a token, such as `I-PER` if each person is a single token,
        is not counted among the labels, and gets the weight 0.

        Args:
            rows: The tokenized rows.
        """
        if self.class_weight is None or self.class_weights:
            return self
        found = label_ids(rows)
        counts = np.bincount(found[found >= 0], minlength=len(self.labels)).tolist()
        balanced = sum(counts) / max(np.count_nonzero(counts), 1)
        weights = [balanced / count if count else 0.0 for count in counts]
        return dataclasses.replace(self, class_weights=weights)


def labels_from(path: Source, found: set[str]) -> list[str]:
    """Return the label names of the model, given the label names in a file.

    If the names have prefixes, return O and, for each type, a label with B- and a label with I-.

    Raises:
        DataError: The file has no label other than O, or only some labels have a prefix.
    """
    names = sorted(found - {OUTSIDE})
    if not names:
        raise DataError(f"{path}: no label but {OUTSIDE}; expected words or entities with labels")
    try:
        has_prefixes = uses_prefixes(names)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    if not has_prefixes:
        return sorted(found)
    kinds = sorted({name[2:] for name in names})
    return [OUTSIDE, *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")]


def is_known(name: str, labels: list[str]) -> bool:
    """Return whether a name in a file, in any scheme, is one of the labels."""
    if name == OUTSIDE or not uses_prefixes(labels):
        return name in labels
    return bool(PREFIXED.fullmatch(name)) and f"B-{name[2:]}" in labels


def label_ids(rows: datasets.Dataset) -> np.ndarray:
    """Return the label ids of all tokens in all windows; -100 for tokens that are ignored."""
    chunks = rows.data.column("labels").chunks
    return np.concatenate([chunk.flatten().to_numpy() for chunk in chunks])


class Dataset(torch.utils.data.Dataset):
    """Tokenized texts, each divided into windows of at most `max_len` tokens.

    Attributes:
        lengths: Number of tokens of each window, shape (n,). Windows of similar length are batched
            together.
        num_items: Number of labelled tokens of each window, or the sum of the weights of their
            labels, shape (n,). The mean loss is the sum of the losses divided by the sum of
            `num_items`.
        schema: Keyword arguments with which `generate_dataset` reads another file as it has read
            this one. `labels` is also passed to `ModelConfig`.
        checksums: For each window, the checksum of the first window of its text, shape (n,).
            Without `--valid_input`, the checksum determines whether the window is held out for
            validation. Either all windows of a text are held out, or none.
        fingerprint: Hash of the tokens, labels and weights, the same on every machine.
        notes: Lines to print about windows, about labels that differ from those of the file, and
            about the weights of the labels, if they have any.
    """

    def __init__(
        self, origin: Rows, schema: dict, tokenizer: PreTrainedTokenizerBase, max_len: int
    ):
        rows = origin.tokens
        is_first = rows.data.column("window").to_numpy() == 0
        row_of = np.cumsum(is_first) - 1
        self.rows = rows
        self.origin = dataclasses.replace(origin, row_of=row_of)
        self.input_ids = column(rows, "input_ids")
        self.labels = column(rows, "labels")
        self.lengths = rows.data.column("length").to_numpy()
        self.num_items = rows.data.column("num_items").to_numpy()
        self.schema = schema
        self.own_checksums = rows.data.column(CHECKSUM).to_numpy()
        self.checksums = self.own_checksums[is_first][row_of]
        self.fingerprint = fingerprint(rows)
        self.tokenizer = tokenizer
        self.notes = list(self._notes(row_of, max_len))
        self.class_weights: torch.Tensor | None = None
        if schema["class_weights"]:
            self._use_weights(np.array(schema["class_weights"]))

    def _use_weights(self, weights: np.ndarray) -> None:
        """Weight the tokens by their labels; `weights` has the shape (labels,)."""
        found = label_ids(self.rows)
        of_tokens = np.where(found >= 0, weights[found.clip(0)], 0.0)
        window_of = np.repeat(np.arange(len(self)), self.lengths)
        self.num_items = np.bincount(window_of, of_tokens, minlength=len(self))
        self.fingerprint = zlib.crc32(weights.tobytes(), self.fingerprint)
        self.class_weights = torch.from_numpy(weights).float()
        self.notes.append(describe_weights(self.schema["labels"], weights))
        if absent := [self.schema["labels"][index] for index in np.flatnonzero(weights == 0)]:
            names = ", ".join(absent[:SHOWN]) + (", ..." if len(absent) > SHOWN else "")
            self.notes.append(f"labels without a token in the training data, weight 0: {names}")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, torch.Tensor]]:
        rows = zip(self.input_ids[indices], self.labels[indices], strict=True)
        return [{"input_ids": ids, "labels": labels} for ids, labels in rows]

    def collate(self, examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Pad to the longest window.

        `input_ids`, `attention_mask` and `labels` have the shape (batch, length). `class_weights`,
        if the labels have weights, have the shape (labels,) and are the same in each batch.
        """
        pad_id = self.tokenizer.pad_token_id or 0  # any id, since padding is masked
        input_ids, attention_mask = pad(examples, "input_ids", pad_id)
        labels, _ = pad(examples, "labels", -100)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        if self.class_weights is not None:
            batch["class_weights"] = self.class_weights
        return batch

    def describe(self) -> Iterator[str]:
        """Yield the number of entities per type, a few examples, and the labels of some tokens."""
        names = self.schema["labels"]
        counts: Counter[str] = Counter()
        for index, count in Counter(label_ids(self.rows).tolist()).items():
            if index >= 0 and names[index] != OUTSIDE and not names[index].startswith("I-"):
                counts[names[index].removeprefix("B-")] += count
        yield describe_counts(dict(sorted(counts.items())))
        yield from describe_examples(self, self._decode)
        yield "labels of the tokens of example 0 (-: ignored)"
        example = self[0]
        tokens = self.tokenizer.convert_ids_to_tokens(example["input_ids"][:SHOWN].tolist())
        width = max(map(len, tokens))
        for token, label in zip(tokens, example["labels"].tolist(), strict=False):
            yield f"  {token:{width}}  {names[label] if label >= 0 else '-'}"

    def faults(self, train: "Dataset | None" = None) -> Iterator[str]:
        """Yield lines about rows that may be wrong.

        Args:
            train: Training data, if this data set is validation data.
        """
        if self.schema["text_column"] is not None:
            yield from self.origin.empty(self.schema["text_column"])
        assert self.origin.row_of is not None
        counts = np.bincount(self.origin.row_of, self.rows.data.column("num_items").to_numpy())
        yield from self.origin.line("without a labelled token", np.flatnonzero(counts == 0))
        yield from self.origin.doubled("input_ids", self.tokenizer)
        others = None if train is None else train.own_checksums
        yield from self.origin.repeated(self.own_checksums, others)
        checksums = [zlib.crc32(labels.tobytes()) for labels in values_of(self.rows, "labels")]
        yield from self.origin.contradictory("input_ids", np.array(checksums))
        if train is None:
            rows = np.repeat(self.origin.row_of, self.lengths)
            labels = label_ids(self.rows)
            is_labelled = labels >= 0
            names = self.schema["labels"]
            yield from self.origin.single_labels(names, labels[is_labelled], rows[is_labelled])

    def _notes(self, row_of: np.ndarray, max_len: int) -> Iterator[str]:
        source = self.origin.source
        count = row_of[-1] + 1
        if len(self) > count:
            long = int((np.bincount(row_of) > 1).sum())
            yield (
                f"{source}: {long:,} of {count:,} texts have more than --max_len {max_len} tokens, "
                "and are divided into overlapping windows; all texts together have "
                f"{len(self):,} windows"
            )
        for name, what in CHANGES.items():
            numbers = self.rows.data.column(name).to_numpy()
            if len(found := np.flatnonzero(numbers)):
                yield f"{numbers.sum():,} {what}, first {self.origin.place(int(found[0]))}"

    def _decode(self, example: dict[str, torch.Tensor]) -> tuple[str, str]:
        ids = example["input_ids"].tolist()
        labels = example["labels"].tolist()
        kept = [index for index, label in enumerate(labels) if label >= 0]
        # An entity ends at the next labelled token, so that all tokens of its words are included.
        ends = [*kept[1:], max(kept, default=0) + 1]
        found = [
            f"{self.tokenizer.decode(ids[kept[start] : ends[end - 1]]).strip()} ({label})"
            for start, end, label in entities_of([self.schema["labels"][labels[k]] for k in kept])
        ]
        return self.tokenizer.decode(ids), ", ".join(found)


def generate_dataset(
    path: Source,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_len: int = 128,
    **schema: Any,
) -> Dataset:
    """Read a file of texts with entities, or of words with labels.

    Args:
        path: A JSON, CSV, TSV or Parquet file, or another source: see `read_table`.
        tokenizer: Default: the tokenizer of the default base model.
        max_len: Texts with more tokens are divided into overlapping windows of at most this length.
            Each token is labelled in one window only.
        schema: Attributes of `Schema`.

    Raises:
        DataError: The file cannot be read, has both words and texts with entities, or has no words
            or no label other than O; only some labels have a prefix; a row is malformed, or has two
            entities that share a token; or a label is not one of `labels`.
        RunError: See `tokenize_in_windows`.
    """
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(BASE_MODEL)
    given = Schema(**schema).with_columns_of(path)
    spans_column = given.spans_column
    columns = given.columns
    nested = [spans_column] if spans_column is not None else []
    table = read_table(path, columns, lists=[] if nested else columns, nested=nested)

    def check(batch: dict[str, list]) -> dict[str, list]:
        found = [check_row(row, spans_column) for row in rows_of(batch, columns)]
        return {"names": [json.dumps(names) for names, _ in found], "fault": [f for _, f in found]}

    complete = given.with_labels_of(path, tokenize(table, check, tokenizer))
    labels = complete.labels

    def encode(batch: dict[str, list]) -> dict[str, list]:
        rows = rows_of(batch, columns)
        windows = list(encode_rows(rows, spans_column, labels, tokenizer, max_len))
        return {name: [window[name] for window in windows] for name in windows[0]}

    rows = tokenize(table, encode, tokenizer)
    faults = rows.data.column("fault")
    complete = complete.weigh(rows)
    dataset = Dataset(Rows(path, table, rows), dataclasses.asdict(complete), tokenizer, max_len)
    if (row := pc.index(pc.not_equal(faults, ""), True).as_py()) >= 0:
        raise DataError(f"{dataset.origin.place(row)}: {faults[row]}")
    if pc.sum(rows.data.column("num_items")).as_py() == 0:
        raise DataError(f"{path}: no words; expected words or texts with labels")
    return dataset


def rows_of(batch: dict[str, list], columns: list[str]) -> list[tuple]:
    """Return the cells of each row."""
    return list(zip(*(batch[name] for name in columns), strict=True))


def check_row(cells: tuple, spans_column: str | None) -> tuple[list[str], str]:
    """Return the distinct labels of a row, and its error ("" if none).

    The labels of entities are returned with the prefix B-.
    """
    try:
        row = parse_row(cells, spans_column, has_prefixes=False)
    except DataError as error:
        return [], str(error)
    if spans_column is not None:
        return sorted({f"B-{entity.label}" for entity in row.entities}), ""
    return sorted({*items(cells[1])}), ""


def encode_rows(
    cells: list[tuple],
    spans_column: str | None,
    labels: list[str],
    tokenizer: PreTrainedTokenizerBase,
    max_len: int,
) -> Iterator[dict[str, Any]]:
    """Tokenize rows and label their tokens; yield the windows of each row.

    `fault` is the error of a row ("" if none). `window` is the number of a window in its row, from
    0. Window 0 has the counts of `CHANGES` for the row, except `divided`, which is 1 in each window
    whose first token to label continues an entity.
    """
    has_prefixes = uses_prefixes(labels)
    rows = [parse_row(row, spans_column, has_prefixes) for row in cells]
    ids = {name: index for index, name in enumerate(labels)}
    tokenized = tokenize_in_windows(tokenizer, [row.text for row in rows], max_len)
    for row, tokens in zip(rows, tokenized, strict=True):
        fault = ""
        found = TokenLabels()
        try:
            found = label_tokens(row, tokens, has_prefixes)
        except DataError as error:
            fault = str(error)
        for number, (window, begin, end) in enumerate(tokens.bounds(found.inside)):
            given = [-100] * len(window.input_ids)
            own = [token for token in range(begin, end) if token in found.names]
            for token in own:
                given[window.position(token)] = ids[found.names[token]]
            yield {
                "input_ids": window.input_ids,
                "labels": given,
                "length": len(given),
                "num_items": len(own),
                "window": number,
                "fault": fault,
                "converted": int(row.is_converted and number == 0),
                "widened": 0 if number else found.widened,
                "lost": 0 if number else found.lost,
                "divided": int(begin in found.inside),
            }
