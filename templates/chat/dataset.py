"""Read conversations, render them by the chat template, and find the answers in the tokens."""

import dataclasses
import json
import re
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
from reading.examples import describe_examples
from reading.locate import locate_row
from reading.sources import Source
from reading.tables import column_names, read_table
from reading.tokens import CHECKSUM, column, fingerprint, pad, tokenize

from .configuration import BASE_MODEL

# Arguments of generate_dataset that train.py offers on its command line.
OPTIONS: dict[str, dict] = {
    "messages_column": {"help": "column of both files (default: messages, if there is one)"},
    "prompt_column": {"default": "prompt", "help": "column of files without messages"},
    "completion_column": {"default": "completion", "help": "column of files without messages"},
    "targets": {
        "choices": ["all", "last"],
        "default": "all",
        "help": "compute the loss on all answers, or on the last of each conversation",
    },
    "packing": {
        "action": "store_true",
        "help": "put several conversations into a row, without attention between them",
    },
    "drop_without_target": {
        "action": "store_true",
        "help": "leave out conversations of which --max_len cuts off all answers",
    },
}
MESSAGES = "messages"
ROLES = ("system", "user", "assistant")
ANSWERS = "assistant"
MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
# For a tokenizer without a template; END is the name of its end mark. A beginning mark is put
# before it if the tokenizer begins every text with one.
DEFAULT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>\\n' + message['content'] + END + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}
"""

Message = dict[str, str]
Span = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Schema:
    """How a file is read.

    Attributes:
        messages_column: The column that holds lists of messages. Default: `messages`, if the file
            has it.
        prompt_column: Otherwise the column of the prompt: a text, or messages.
        completion_column: And that of what follows it: a text, or messages.
        targets: Answers to learn: all, or the last of each conversation. Those of a prompt are no
            targets.
        packing: Whether several conversations are put into a row.
        drop_without_target: Whether conversations are left out of which `max_len` cuts off all
            targets.
        end_ids: Tokens that end an answer. Default: those found in the file.
    """

    messages_column: str | None = None
    prompt_column: str = OPTIONS["prompt_column"]["default"]
    completion_column: str = OPTIONS["completion_column"]["default"]
    targets: str = OPTIONS["targets"]["default"]
    packing: bool = False
    drop_without_target: bool = False
    end_ids: list[int] = dataclasses.field(default_factory=list)

    def columns_in(self, path: Source) -> list[str]:
        """Return the columns to read: of the messages, or of prompt and completion.

        Raises:
            DataError: The file has both, or neither.
        """
        if self.messages_column is not None:
            return [self.messages_column]
        pair = [self.prompt_column, self.completion_column]
        names = column_names(path)
        missing = [name for name in pair if name not in names]
        if MESSAGES in names and not missing:
            raise DataError(
                f"{path}: has the columns {MESSAGES!r}, {pair[0]!r} and {pair[1]!r}; expected "
                f"either, or --messages_column {MESSAGES}"
            )
        if names and missing and MESSAGES not in names:
            found = ", ".join(map(repr, names))
            raise DataError(
                f"{locate_row(path, 0)}: no column {missing[0]!r}, and no {MESSAGES!r}; the file "
                f"has {found}"
            )
        return [MESSAGES] if MESSAGES in names else pair


class Dataset(torch.utils.data.Dataset):
    """Tokenized conversations; with `packing`, rows of several.

    Attributes:
        lengths: Tokens of each example, shape (n,); like lengths are batched together.
        num_items: Target tokens of each example, shape (n,); the loss is averaged over these.
        schema: How the file was read: arguments with which `generate_dataset` reads another file
            in the same way.
        checksums: Checksum of each example, shape (n,); by these, examples are held out.
        fingerprint: Hash of the tokens, the same on every machine.
        notes: Lines about what was chosen or left out.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        schema: Schema,
        tokenizer: PreTrainedTokenizerBase,
        max_len: int,
        notes: Iterable[str] = (),
    ):
        lengths, num_items, checksums, is_cut = (
            rows.data.column(name).to_numpy()
            for name in ("length", "num_items", CHECKSUM, "is_cut")
        )
        self.rows = rows
        self.input_ids = column(rows, "input_ids")
        self.labels = column(rows, "labels")
        # Example i has the conversations order[bounds[i]:bounds[i + 1]].
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
        self.schema = dataclasses.asdict(schema)
        self.fingerprint = zlib.crc32(repr(self.schema).encode(), fingerprint(rows))
        self.tokenizer = tokenizer
        self.notes = list(notes)
        self.cut = f"--max_len {max_len} cuts {is_cut.sum():,} of {len(rows):,} conversations"
        self.cut += f" ({is_cut.mean():.1%})"

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        members = self.order[self.bounds[index] : self.bounds[index + 1]].tolist()
        parts = self.input_ids[members]
        example = {"input_ids": torch.cat(parts), "labels": torch.cat(self.labels[members])}
        if self.schema["packing"]:
            # Where positions begin again, transformers lets attention begin again.
            example["position_ids"] = torch.cat([torch.arange(len(part)) for part in parts])
        return example

    def collate(self, examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Pad to the longest example, on the right: (batch, length)."""
        fill = {"input_ids": self.tokenizer.pad_token_id or 0, "labels": -100, "position_ids": 0}
        return {key: pad(examples, key, fill[key])[0] for key in examples[0]}

    def describe(self) -> Iterator[str]:
        """Yield lines about truncation, and that show a few examples."""
        yield f"  {self.cut}"
        yield from describe_examples(self, self._decode)

    def _decode(self, example: dict[str, torch.Tensor]) -> tuple[str, str]:
        labels = example["labels"]
        targets = labels[labels != -100]
        return self.tokenizer.decode(example["input_ids"]), self.tokenizer.decode(targets)


def pack(lengths: np.ndarray, room: int) -> list[list[int]]:
    """Put items into packs of at most `room`: the longest first, each where it fits best."""
    packs: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # packs by the room that is left in them
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


def as_messages(name: str, value: Any, role: str = "") -> list[Message]:
    """Check the messages in a cell.

    Args:
        name: The column.
        role: The role of a text that stands there in place of a list. Default: none may stand.

    Raises:
        DataError: They are malformed.
    """
    if isinstance(value, str) and role:
        return [{"role": role, "content": value}]
    if not isinstance(value, list):
        raise DataError(f"{name!r} holds {_kind(value)}; expected a list of messages")
    if not value:
        raise DataError(f"{name!r} holds an empty list; expected messages")
    for message in value:
        if not isinstance(message, dict):
            raise DataError(f"{name!r} holds a list with {_kind(message)}; expected messages")
        _check_message(message)
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _check_message(message: dict[str, Any]) -> None:
    others = [key for key, value in message.items() if value is not None]
    others = [key for key in others if key not in ("role", "content")]
    if others:  # such as tool calls, which would be lost
        raise DataError(f"a message has the key {others[0]!r}; expected role and content alone")
    if (role := message.get("role")) not in ROLES:
        raise DataError(f"a message has the role {role!r}; expected one of {', '.join(ROLES)}")
    if not isinstance(content := message.get("content"), str):
        raise DataError(f"the content of a message is {_kind(content)}; expected text")


def _kind(value: Any) -> str:
    kinds = {str: "text", list: "a list", dict: "an object", bool: "true or false"}
    return "null" if value is None else kinds.get(type(value), "a number")


def as_conversation(row: dict[str, Any]) -> tuple[list[Message], list[int]]:
    """Return the messages of a row, and the indices of those that are answers to learn.

    Raises:
        DataError: They are malformed.
    """
    first, *rest = row.items()
    messages = as_messages(*first, "user" if rest else "")
    begin = len(messages) if rest else 0
    for cell in rest:
        messages += as_messages(*cell, ANSWERS)
    answers = [n for n in range(begin, len(messages)) if messages[n]["role"] == ANSWERS]
    if not answers:
        raise DataError("no message of the assistant; expected an answer to learn")
    return messages, answers


def render(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], before_answer: bool = False
) -> str:
    """Render messages by the chat template.

    Args:
        before_answer: Whether to append what stands before an answer.

    Raises:
        DataError: The template does not accept the messages.
    """
    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=before_answer
        )
    except Exception as error:  # of many kinds: a template is a program
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"the chat template does not accept the messages ({reason})") from None


def find_answers(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], answers: list[int]
) -> tuple[str, list[Span]]:
    """Render a conversation, and find its answers in the text.

    They are what the template itself marks, by `{% generation %}`. Without marks, an answer is what
    stands between the rendering that asks for it and the one that ends with it, both of which have
    to begin the whole.

    Raises:
        DataError: The template renders the beginning of a conversation otherwise than alone.
    """
    if MARKS.search(tokenizer.get_chat_template()):
        return _marked_answers(tokenizer, messages, answers)
    text = render(tokenizer, messages)
    spans: list[Span] = []
    for answer in answers:
        if answer == 0:
            raise DataError("the first message is an answer; expected a message before it")
        before = render(tokenizer, messages[:answer], before_answer=True)
        until = render(tokenizer, messages[: answer + 1])
        if not text.startswith(before) or not text.startswith(until):
            raise DataError(
                f"the chat template renders message {answer + 1} otherwise if others follow; "
                "expected --targets last, or a template that marks answers by {% generation %}"
            )
        spans.append((len(before), len(until)))
    return text, spans


def _marked_answers(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], answers: list[int]
) -> tuple[str, list[Span]]:
    text = render(tokenizer, messages)
    tokens = tokenizer.apply_chat_template(
        messages,
        return_dict=True,
        return_assistant_tokens_mask=True,
        tokenizer_kwargs={"return_offsets_mapping": True},
    )
    edges = np.flatnonzero(np.diff([0, *tokens["assistant_masks"], 0])).tolist()
    offsets = tokens["offset_mapping"]
    marked = [
        (offsets[first][0], offsets[end - 1][1])
        for first, end in zip(edges[::2], edges[1::2], strict=True)
    ]
    of_assistant = [n for n, message in enumerate(messages) if message["role"] == ANSWERS]
    if len(marked) != len(of_assistant):
        raise DataError(
            f"the chat template marks {len(marked)} answers; expected {len(of_assistant)}"
        )
    return text, [marked[of_assistant.index(answer)] for answer in answers]


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], answers: list[int]
) -> tuple[list[int], list[int], list[int]]:
    """Tokenize a conversation.

    Returns:
        Token ids; labels, which are -100 outside of the answers; and the token that ends each
        answer.

    Raises:
        DataError: The template alters a message, an answer does not end with a token of its own,
            or it shares a token with what stands before it.
    """
    text, spans = find_answers(tokenizer, messages, answers)
    parts = [text[begin:end] for begin, end in spans]
    _check_texts(messages, answers, text, parts)
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids: list[int] = tokens["input_ids"]
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    labels = [-100] * len(ids)
    ends: list[int] = []
    for (begin, _), part in zip(spans, parts, strict=True):
        end = begin + len(part.rstrip())  # the line break after the end mark is no target
        inside: list[int] = []
        for n, (start, stop) in enumerate(tokens["offset_mapping"]):
            if start < begin < stop and ids[n] not in special:
                token = text[start:stop]
                raise DataError(
                    f"an answer shares its first token {token!r} with what the chat template puts "
                    "before it; expected another beginning"
                )
            if begin <= start < end:
                inside.append(n)
        ends.append(_end_of(tokenizer, [ids[n] for n in inside], special))
        for n in inside:
            labels[n] = ids[n]
    labels[0] = -100  # nothing stands before it
    return ids, labels, ends


def _check_texts(messages: list[Message], answers: list[int], text: str, parts: list[str]) -> None:
    """Check that each message stands in the text, but for white space.

    Earlier answers may be shortened, as by templates that leave out reasoning.
    """
    targets = dict(zip(answers, parts, strict=True))
    whole = "".join(text.split())
    for n, message in enumerate(messages):
        place = "".join(targets[n].split()) if n in targets else whole
        is_kept = "".join(message["content"].split()) in place
        if not is_kept and (n in targets or message["role"] != ANSWERS):
            raise DataError(
                f"the chat template leaves out or alters message {n + 1}, of the "
                f"{message['role']}; expected its whole content"
            )


def _end_of(tokenizer: PreTrainedTokenizerBase, ids: list[int], special: set[int]) -> int:
    """Return the token that ends an answer."""
    if not ids or ids[-1] not in special:
        last = tokenizer.decode(ids[-1:])
        raise DataError(
            f"the chat template ends an answer with {last!r}; expected a special token, at which "
            "generation can stop"
        )
    if ids[-1] in ids[:-1]:
        mark = tokenizer.decode(ids[-1:])
        raise DataError(f"an answer holds {mark!r}, which ends it; expected it at the end alone")
    return ids[-1]


def encode_row(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, targets: str, max_len: int
) -> dict[str, Any]:
    """Tokenize a row of the file; `fault` is what is wrong with it."""
    try:
        messages, answers = as_conversation(row)
        answers = answers[-1:] if targets == "last" else answers
        ids, labels, ends = encode_conversation(tokenizer, messages, answers)
        fault = ""
    except DataError as error:
        ids, labels, ends, fault = [0], [-100], [0], str(error)
    is_cut = len(ids) > max_len
    ids = ids[:max_len]
    labels = labels[:max_len]
    num_items = sum(label != -100 for label in labels)
    counts = {"length": len(ids), "num_items": num_items, "is_cut": is_cut}
    return {"input_ids": ids, "labels": labels, "ends": ends, "fault": fault, **counts}


def use_template(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Give the tokenizer `DEFAULT_TEMPLATE` if it has none; return lines about it.

    Raises:
        DataError: It has no end mark for that, or tells no offsets.
    """
    if not tokenizer.is_fast:
        name = type(tokenizer).__name__
        raise DataError(f"{name} gives no offsets of tokens; expected a fast tokenizer")
    if tokenizer.chat_template:
        try:
            tokenizer.get_chat_template()
        except ValueError as error:  # it has several, and none of them is the default
            reason = str(error).splitlines()[0]
            raise DataError(f"the tokenizer has no default chat template ({reason})") from None
        return []
    name = "eos_token" if tokenizer.eos_token else "sep_token"
    if not getattr(tokenizer, name):
        raise DataError("the tokenizer has neither chat_template nor eos_token; expected either")
    begins = tokenizer.bos_token_id in tokenizer("").input_ids[:1]
    template = ("{{- bos_token -}}\n" if begins else "") + DEFAULT_TEMPLATE.replace("END", name)
    tokenizer.chat_template = template
    return ["the tokenizer has no chat template: model/dataset.py's DEFAULT_TEMPLATE is used"]


def generate_dataset(
    path: Source,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_len: int = 128,
    **schema: Any,
) -> Dataset:
    """Read a file of conversations.

    Args:
        path: A JSON, CSV, TSV or Parquet file, or another source: see `read_table`.
        tokenizer: The base model's own when not given. If it has no chat template, it gets one.
        max_len: Longer conversations are cut to this many tokens; and tokens in a row of several.
        schema: Attributes of `Schema`.

    Raises:
        DataError: The file cannot be read, a row is no conversation, the chat template does not
            fit, or a conversation has no target left.
    """
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(BASE_MODEL)
    notes = use_template(tokenizer)
    given = Schema(**schema)
    columns = given.columns_in(path)
    targets = given.targets
    table = read_table(path, columns, nested=columns)

    def encode(batch: dict[str, list]) -> dict[str, list]:
        cells = zip(*(batch[name] for name in columns), strict=True)
        rows = [dict(zip(columns, map(json.loads, row), strict=True)) for row in cells]
        found = [encode_row(row, tokenizer, targets, max_len) for row in rows]
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
    return Dataset(rows, complete, tokenizer, max_len, notes)


def _check_targets(
    path: Source, rows: datasets.Dataset, schema: Schema, max_len: int
) -> Iterator[str]:
    """Yield a line about conversations without a target.

    Raises:
        DataError: They are not to be left out, or there are no others.
    """
    empty = np.flatnonzero(rows.data.column("num_items").to_numpy() == 0)
    if len(empty) == 0:
        return
    found = (
        f"--max_len {max_len} cuts off all targets of {len(empty):,} of {len(rows):,} "
        f"conversations, first {locate_row(path, int(empty[0]))}"
    )
    if len(empty) == len(rows):
        raise DataError(f"{path}: {found}; expected a larger --max_len")
    if not schema.drop_without_target:
        raise DataError(f"{path}: {found}; expected a larger --max_len, or --drop_without_target")
    yield f"{path}: {found}; they are left out"


def _end_ids(
    path: Source,
    rows: datasets.Dataset,
    known: list[int],
    tokenizer: PreTrainedTokenizerBase,
) -> list[int]:
    """Return the tokens that end the answers.

    Raises:
        DataError: One is not known: generation would not stop there.
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
