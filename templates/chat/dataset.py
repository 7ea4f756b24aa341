"""Read conversations, tokenize them, and optionally pack several of them into a row."""

import dataclasses
import json
import sys
import zlib
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from errors import DataError
from reading.answers import (
    Encoded,
    Span,
    label_answers,
    render_conversation,
    special_tokens,
    use_template,
)
from reading.examples import describe_examples
from reading.faults import Rows
from reading.locate import locate_row
from reading.messages import as_conversation
from reading.sources import Source
from reading.tables import column_names, read_table
from reading.tokens import CHECKSUM, column, fingerprint, pad, tokenize

from .configuration import BASE_MODEL

# Arguments of generate_dataset that train.py offers on its command line.
OPTIONS: dict[str, dict] = {
    "messages_column": {"help": "column of the messages (default: messages, if it exists)"},
    "prompt_column": {"default": "prompt", "help": "column of the prompts"},
    "completion_column": {"default": "completion", "help": "column of the completions"},
    "targets": {
        "choices": ["all", "last"],
        "default": "all",
        "help": "compute the loss on all answers or on the last one of a conversation",
    },
    "packing": {
        "action": "store_true",
        "help": "pack conversations into rows of up to --max_len tokens, with attention masked "
        "between conversations",
    },
    "drop_without_target": {
        "action": "store_true",
        "help": "omit conversations without a target after truncation",
    },
}
MESSAGES = "messages"


@dataclasses.dataclass(frozen=True)
class Schema:
    """Settings with which a data file is read.

    Attributes:
        messages_column: Column of the lists of messages. Default: `messages`, if the file has this
            column; otherwise the file has prompts and completions.
        prompt_column: Column of the prompts: texts, or lists of messages.
        completion_column: Column of the completions: texts, or lists of messages.
        targets: Which answers are targets: "all", or the "last" one of each conversation. Answers
            in a prompt are never targets.
        packing: Whether to pack conversations into rows of up to `max_len` tokens.
        drop_without_target: Whether to omit conversations without a target after truncation.
        end_ids: Ids of the end-of-turn tokens. Default: those found in the file.
    """

    messages_column: str | None = None
    prompt_column: str = OPTIONS["prompt_column"]["default"]
    completion_column: str = OPTIONS["completion_column"]["default"]
    targets: str = OPTIONS["targets"]["default"]
    packing: bool = False
    drop_without_target: bool = False
    end_ids: list[int] = dataclasses.field(default_factory=list)

    def columns_in(self, path: Source) -> list[str]:
        """Return the columns to read: the messages, or prompt and completion.

        Raises:
            DataError: The file cannot be read, or has both kinds of columns or neither kind. Not
                raised if `messages_column` is given.
        """
        if self.messages_column is not None:
            return [self.messages_column]
        pair = [self.prompt_column, self.completion_column]
        names = column_names(path)
        missing = [name for name in pair if name not in names]
        if MESSAGES in names and not missing:
            raise DataError(
                f"{path}: has the columns {MESSAGES!r}, {pair[0]!r} and {pair[1]!r}; expected "
                "only messages or only prompts and completions, or --messages_column "
                f"{MESSAGES}"
            )
        if names and missing and MESSAGES not in names:
            found = ", ".join(map(repr, names))
            raise DataError(
                f"{locate_row(path, 0)}: no column {missing[0]!r}, and no {MESSAGES!r}; the file "
                f"has {found}"
            )
        return [MESSAGES] if MESSAGES in names else pair


class Dataset(torch.utils.data.Dataset):
    """Tokenized conversations or, with `packing`, rows of several conversations.

    Attributes:
        lengths: Number of tokens of each example, shape (n,). Examples of similar length are
            batched together.
        num_items: Number of target tokens of each example, shape (n,). The loss is averaged over
            these tokens.
        schema: Keyword arguments with which `generate_dataset` reads another file as it has read
            this one.
        checksums: Checksum of each example, shape (n,). Without `--valid_input`, the checksum
            determines whether the example is held out for validation.
        fingerprint: Hash of the tokens, labels and `schema`, the same on every machine.
        notes: Lines to print about the chat template and omitted conversations.
    """

    def __init__(
        self,
        origin: Rows,
        schema: Schema,
        tokenizer: PreTrainedTokenizerBase,
        max_len: int,
        notes: Iterable[str] = (),
    ):
        rows = origin.tokens
        lengths, num_items, checksums = (
            rows.data.column(name).to_numpy() for name in ("length", "num_items", CHECKSUM)
        )
        self.rows = rows
        self.origin = origin
        self.max_len = max_len
        self.input_ids = column(rows, "input_ids")
        self.labels = column(rows, "labels")
        # Example i consists of the conversations order[bounds[i]:bounds[i + 1]].
        self.order = np.flatnonzero(num_items)
        self.bounds = np.arange(len(self.order) + 1)
        if schema.packing:
            packs = pack(lengths[self.order], max_len)
            self.order = self.order[np.concatenate(packs)]
            self.bounds = np.cumsum([0, *map(len, packs)])
        starts = self.bounds[:-1]
        self.lengths = np.add.reduceat(lengths[self.order], starts)
        self.num_items = np.add.reduceat(num_items[self.order], starts)
        self.checksums = np.bitwise_xor.reduceat(checksums[self.order], starts)
        pair = [schema.prompt_column, schema.completion_column]
        self.columns = pair if schema.messages_column is None else [schema.messages_column]
        self.schema = dataclasses.asdict(schema)
        self.fingerprint = zlib.crc32(repr(self.schema).encode(), fingerprint(rows))
        self.tokenizer = tokenizer
        self.notes = list(notes)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        members = self.order[self.bounds[index] : self.bounds[index + 1]].tolist()
        parts = self.input_ids[members]
        example = {"input_ids": torch.cat(parts), "labels": torch.cat(self.labels[members])}
        if self.schema["packing"]:
            # If positions restart at 0 for each part, transformers masks attention between parts.
            example["position_ids"] = torch.cat([torch.arange(len(part)) for part in parts])
        return example

    def collate(self, examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Pad on the right to the longest example; return tensors of shape (batch, length)."""
        fill = {"input_ids": self.tokenizer.pad_token_id or 0, "labels": -100, "position_ids": 0}
        return {key: pad(examples, key, fill[key])[0] for key in examples[0]}

    def describe(self) -> Iterator[str]:
        """Yield lines that show a few examples."""
        yield from describe_examples(self, self._decode)

    def faults(self, train: "Dataset | None" = None) -> Iterator[str]:
        """Yield lines about conversations that may be wrong.

        Args:
            train: Training data, if this data set is validation data.
        """
        origin = self.origin
        empty = np.fromiter(self._with_empty_message(), dtype=int)
        yield from origin.line("with an empty message", empty)

        def encode(batch: dict[str, list]) -> list[list]:
            targets = self.schema["targets"]
            found = encode_rows(rows_of(batch, self.columns), self.tokenizer, targets, sys.maxsize)
            return [row["input_ids"] for row in found]

        is_cut = self.rows.data.column("is_cut").to_numpy()
        yield from origin.cut("conversations", np.flatnonzero(is_cut), self.max_len, encode)
        own, *others = (
            data.rows.data.column(CHECKSUM).to_numpy() for data in (self, train) if data is not None
        )
        yield from origin.doubled("input_ids", self.tokenizer)
        yield from origin.repeated(own, others[0] if others else None)

    def _with_empty_message(self) -> Iterator[int]:
        """Yield the index of each conversation with a message without text."""
        batches = self.origin.texts.iter(batch_size=1000)
        rows = (row for batch in batches for row in rows_of(batch, self.columns))
        for index, (messages, _) in enumerate(map(as_conversation, rows)):
            if not all(message["content"].strip() for message in messages):
                yield index

    def _decode(self, example: dict[str, torch.Tensor]) -> tuple[str, str]:
        labels = example["labels"]
        targets = labels[labels != -100]
        return self.tokenizer.decode(example["input_ids"]), self.tokenizer.decode(targets)


def pack(lengths: np.ndarray, room: int) -> list[list[int]]:
    """Distribute items among packs of at most `room` tokens, by the best-fit decreasing method.

    Args:
        lengths: Number of tokens of each item, shape (n,).

    Returns:
        The indices of the items of each pack.
    """
    packs: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # indices of packs, by their free room
    rooms: list[int] = []  # the keys of by_room, sorted
    for item in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[item])
        place = bisect_left(rooms, length)
        if place == len(rooms):
            packs.append([])
            left = room
            number = len(packs) - 1
        else:
            left = rooms[place]
            number = by_room[left].pop()
            if not by_room[left]:
                del by_room[left]
                del rooms[place]
        packs[number].append(item)
        left -= length
        if left not in by_room:
            by_room[left] = []
            insort(rooms, left)
        by_room[left].append(number)
    return packs


def rows_of(batch: dict[str, list], columns: list[str]) -> list[dict[str, Any]]:
    """Return the rows of a batch of JSON cells, with the columns in the given order."""
    cells = zip(*(batch[name] for name in columns), strict=True)
    return [dict(zip(columns, map(json.loads, row), strict=True)) for row in cells]


def render_row(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, targets: str
) -> tuple[str, list[Span], str]:
    """Return the text of a row, the spans of its targets, and its error ("" if none)."""
    try:
        messages, answers = as_conversation(row)
        answers = answers[-1:] if targets == "last" else answers
        return (*render_conversation(tokenizer, messages, answers), "")
    except DataError as error:
        return "", [], str(error)


def encode_rows(
    rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, targets: str, max_len: int
) -> Iterator[dict[str, Any]]:
    """Tokenize rows of the file, and yield a dict for each row.

    `fault` is the error of the row ("" if none). `ends` has the last token id of each target
    answer. `length` and `num_items` count the tokens and the target tokens after truncation to
    `max_len` tokens; `is_cut` is True if the row was truncated.
    """
    texts, spans, faults = zip(*(render_row(row, tokenizer, targets) for row in rows), strict=True)
    options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    tokens = tokenizer(list(texts), **options)
    special = special_tokens(tokenizer)
    for n, fault in enumerate(faults):
        ids = tokens["input_ids"][n]
        offsets = tokens["offset_mapping"][n]
        encoded = Encoded([0], [-100], [0])
        try:
            if not fault:
                encoded = label_answers(tokenizer, ids, offsets, spans[n], special)
        except DataError as error:
            fault = str(error)
        labels = encoded.labels[:max_len]
        yield {
            "input_ids": encoded.input_ids[:max_len],
            "labels": labels,
            "ends": encoded.ends,
            "fault": fault,
            "length": len(labels),
            "num_items": sum(label != -100 for label in labels),
            "is_cut": len(encoded.labels) > max_len,
        }


def generate_dataset(
    path: Source,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_len: int = 128,
    **schema: Any,
) -> Dataset:
    """Read a file of conversations.

    Args:
        path: A JSON, CSV, TSV or Parquet file, or another source: see `read_table`.
        tokenizer: Default: the tokenizer of the default base model. If the tokenizer has no chat
            template, `DEFAULT_TEMPLATE` is set.
        max_len: Maximum number of tokens. Longer conversations are truncated at the end.
        schema: Attributes of `Schema`.

    Raises:
        DataError: The file cannot be read, or has both messages and prompts with completions, or
            neither; a row is malformed; the tokenizer or its chat template cannot be used: see
            `use_template`, `render_conversation` and `label_answers`; truncation removes all
            targets of a conversation (unless `drop_without_target` is set) or of all conversations;
            or an answer ends with a token that is not one of the given `end_ids`.
    """
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(BASE_MODEL)
    notes = use_template(tokenizer)
    given = Schema(**schema)
    columns = given.columns_in(path)
    targets = given.targets
    table = read_table(path, columns, nested=columns)

    def encode(batch: dict[str, list]) -> dict[str, list]:
        found = list(encode_rows(rows_of(batch, columns), tokenizer, targets, max_len))
        return {name: [row[name] for row in found] for name in found[0]}

    rows = tokenize(table, encode, tokenizer)
    faults = rows.data.column("fault")
    if (row := pc.index(pc.not_equal(faults, ""), True).as_py()) >= 0:
        raise DataError(f"{locate_row(path, row)}: {faults[row]}")
    notes += _check_targets(path, rows, given, max_len)
    complete = dataclasses.replace(
        given,
        messages_column=columns[0] if len(columns) == 1 else None,
        end_ids=_end_ids(path, rows, given.end_ids, tokenizer),
    )
    return Dataset(Rows(path, table, rows), complete, tokenizer, max_len, notes)


def _check_targets(
    path: Source, rows: datasets.Dataset, schema: Schema, max_len: int
) -> Iterator[str]:
    """Yield a line about conversations without a target after truncation.

    Raises:
        DataError: Such a conversation exists and `drop_without_target` is not set, or no
            conversation has a target.
    """
    empty = np.flatnonzero(rows.data.column("num_items").to_numpy() == 0)
    if len(empty) == 0:
        return
    found = (
        f"--max_len {max_len} removes all targets of {len(empty):,} of {len(rows):,} "
        f"conversations, the first at {locate_row(path, int(empty[0]))}"
    )
    if len(empty) == len(rows):
        raise DataError(f"{path}: {found}; expected a larger --max_len")
    if not schema.drop_without_target:
        raise DataError(f"{path}: {found}; expected a larger --max_len, or --drop_without_target")
    yield f"{path}: {found}; they are omitted"


def _end_ids(
    path: Source,
    rows: datasets.Dataset,
    known: list[int],
    tokenizer: PreTrainedTokenizerBase,
) -> list[int]:
    """Return the ids of the end-of-turn tokens.

    Args:
        known: `end_ids` of the training data; empty when the training data are read.

    Raises:
        DataError: `known` lacks an end-of-turn token of the file, so generation would not stop at
            this token. Not raised if `known` is empty.
    """
    ends = pc.list_flatten(rows.data.column("ends"))
    found = pc.unique(ends).to_pylist()
    for end in found:
        if known and end not in known:
            row = pc.list_parent_indices(rows.data.column("ends"))[pc.index(ends, end).as_py()]
            tokens = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(known)))
            other = tokenizer.convert_ids_to_tokens(end)
            raise DataError(
                f"{locate_row(path, row.as_py())}: an answer ends with {other!r}; expected "
                f"{tokens}, as in the training data"
            )
    return known or sorted(found)
