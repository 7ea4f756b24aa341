"""Generate answers in conversations, for predict.py."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import BaseStreamer

from errors import DataError, RunError
from reading.answers import render, use_template
from reading.decoding import Decoder
from reading.locate import locate_row
from reading.messages import ANSWERS, Message, as_messages
from reading.sources import Source
from reading.tables import read_table

from .argument_types import positive_float, positive_int
from .dataset import MESSAGES, Schema

# Arguments of Predictor that predict.py offers on its command line. Generation settings that have
# neither a value on the command line nor a default here come from the checkpoint's
# generation_config.json.
OPTIONS: dict[str, dict] = {
    "max_new_tokens": {
        "type": positive_int,
        "default": 64,
        "help": "maximum number of tokens to generate",
    },
    "num_beams": {"type": positive_int, "help": "number of beams"},
    "do_sample": {
        "action": "store_const",
        "const": True,
        "help": "use sampling instead of greedy decoding",
    },
    "temperature": {"type": positive_float, "help": "sampling temperature"},
    "top_p": {"type": positive_float, "help": "cumulative probability for nucleus sampling"},
}
TOLERANCE = 1e-4  # relative to the largest absolute value of a logit


class Predictor:
    """Answer conversations.

    Args:
        max_len: Maximum number of tokens of a prompt. The oldest messages of longer conversations
            are omitted, except a system message.
        schema: Settings with which the training data were read.
        options: Arguments of `generate`. Those that are None are not passed.

    Attributes:
        columns: Name of the column of the messages or prompts, as in the training data.
        notes: Lines to print about the chat template.

    Raises:
        RunError: `max_new_tokens` is at least the number of positions of the model.
        DataError: See `use_template`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_len: int,
        schema: dict,
        **options,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.options = {name: value for name, value in options.items() if value is not None}
        trained = Schema(**schema)
        is_pair = trained.messages_column is None and bool(schema)
        self.columns: list[str] = [
            trained.prompt_column if is_pair else trained.messages_column or MESSAGES
        ]
        self.notes = use_template(tokenizer)
        self.decode = Decoder(tokenizer, model.generation_config)
        self.room = self._room(max_len, self.options.get("max_new_tokens", 0))
        self.pad_token_id = tokenizer.pad_token_id or 0  # any token, since padding is masked
        ends = model.generation_config.eos_token_id
        self.ends = {*ends} if isinstance(ends, list) else {ends}
        self.pads = self._ignores_padding()

    def read(self, source: Source) -> Iterator[dict[str, Any]]:
        """Yield the rows of a file: messages, or prompts.

        Raises:
            DataError: The file cannot be read, or a row cannot be answered.
        """
        (column,) = self.columns
        for n, row in enumerate(read_table(source, [column], nested=[column])):
            value = json.loads(row[column])
            try:
                self._prompt(to_answer(column, value))
            except DataError as error:
                raise DataError(f"{locate_row(source, n)}: {error}") from None
            yield {column: value}

    def lengths(self, texts: Sequence[Any]) -> list[int]:
        """Return the number of tokens of each prompt, plus `max_new_tokens`.

        Rows of similar length are batched together. Adding `max_new_tokens` to all lengths makes
        the batches larger: generation takes most of the time, and a few large batches with padding
        are faster than many small batches with less padding.
        """
        new = self.options.get("max_new_tokens", 0)
        prompts = (self._prompt(to_answer(self.columns[0], text)) for text in texts)
        return [len(prompt) + new for prompt, _ in prompts]

    def __call__(self, texts: Sequence[Any]) -> list[dict]:
        """Generate the next answer for each conversation or prompt; return it as `prediction`.

        Answers at the end of a conversation are ignored. If a conversation exceeds `max_len` or
        leaves too few positions for the answer, its oldest messages are omitted, except a system
        message, and `messages_left_out` is the number of omitted messages.
        """
        found = [self._prompt(to_answer(self.columns[0], text)) for text in texts]
        together: dict[int, list[int]] = defaultdict(list)
        for index, (prompt, _) in enumerate(found):
            together[0 if self.pads else len(prompt)].append(index)
        answers: dict[int, str] = {}
        for indices in together.values():
            some = self._answer([found[index][0] for index in indices])
            answers.update(zip(indices, some, strict=True))
        rows: list[dict] = [{"prediction": answers[index]} for index in range(len(texts))]
        for row, (_, left_out) in zip(rows, found, strict=True):
            row |= {"messages_left_out": left_out} if left_out else {}
        return rows

    def start_conversation(self) -> "Conversation":
        """Return an empty conversation."""
        return Conversation(self)

    def answer(self, messages: list[Message], show: Callable[[str], object]) -> str:
        """Generate and return an answer, and pass its text to `show`.

        Without beam search, the text is passed in pieces during generation.
        """
        prompt, left_out = self._prompt(messages)
        if left_out:
            show(f"(messages that no longer fit and are omitted: {left_out}) ")
        beams = self.options.get("num_beams", self.model.generation_config.num_beams) or 1
        streamer = _Streamer(self._decode, show)
        outputs = self._generate(
            [prompt],
            [[1] * len(prompt)],
            streamer=None if beams > 1 else streamer,  # the best beam is only known at the end
            **self.options,
        )
        (answer,) = self._decode(outputs[:, len(prompt) :])
        show(answer[len(streamer.shown) :])
        return answer

    def _room(self, max_len: int, max_new_tokens: int) -> int:
        """Return the maximum prompt length: `max_len`, or less to leave room for new tokens."""
        positions = getattr(self.model.config, "max_position_embeddings", None)
        room = max_len if positions is None else min(max_len, positions - max_new_tokens)
        if room < 1:
            raise RunError(
                f"--max_new_tokens {max_new_tokens}: expected less than {positions}, the number of "
                "positions of the model"
            )
        return room

    def _prompt(self, messages: list[Message]) -> tuple[list[int], int]:
        """Render and tokenize messages with the generation prompt.

        If there are too many tokens, omit the oldest messages, except a system message.

        Returns:
            Token ids, and the number of omitted messages.

        Raises:
            DataError: The chat template rejects the messages, or the last message is too long.
        """
        begin = 1 if messages[0]["role"] == "system" else 0
        starts = [n for n in range(begin, len(messages)) if messages[n]["role"] == "user"]
        ids: list[int] = []
        for start in dict.fromkeys([begin, *starts]):
            text = render(self.tokenizer, messages[:begin] + messages[start:], before_answer=True)
            ids = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
            if len(ids) <= self.room:
                return ids, start - begin
        raise DataError(
            f"the last message has {len(ids):,} tokens, including the chat template and any system "
            f"message; expected at most {self.room:,}"
        )

    def _answer(self, prompts: list[list[int]]) -> list[str]:
        length = max(map(len, prompts))
        # Pad on the left, since new tokens are appended on the right.
        padded = [[self.pad_token_id] * (length - len(ids)) + ids for ids in prompts]
        masks = [[0] * (length - len(ids)) + [1] * len(ids) for ids in prompts]
        outputs = self._generate(padded, masks, **self.options)
        return self._decode(outputs[:, length:])

    def _decode(self, rows: torch.Tensor) -> list[str]:
        """Decode each row up to its first end token."""
        texts = []
        for row in rows.tolist():
            stop = next((n for n, token in enumerate(row) if token in self.ends), len(row))
            texts += self.decode(torch.tensor([row[:stop]], dtype=torch.int64))
        return texts

    def _generate(self, ids: list[list[int]], masks: list[list[int]], **options):
        return self.model.generate(
            torch.tensor(ids, device=self.model.device),
            attention_mask=torch.tensor(masks, device=self.model.device),
            pad_token_id=self.pad_token_id,
            **options,
        )

    def _ignores_padding(self) -> bool:
        """Return whether padding on the left leaves the logits of a prompt unchanged."""
        options = {"max_new_tokens": 1, "do_sample": False, "num_beams": 1}
        options |= {"output_logits": True, "return_dict_in_generate": True}
        ids = [1, 2, 1]
        pads = [self.pad_token_id] * 2
        alone = self._generate([ids], [[1, 1, 1]], **options).logits[0]
        padded = self._generate([pads + ids], [[0, 0, 1, 1, 1]], **options).logits[0]
        return bool((alone - padded).abs().max() <= TOLERANCE * alone.abs().max())


class Conversation:
    """A conversation in the terminal, with all of its messages."""

    def __init__(self, predictor: Predictor):
        self.predictor = predictor
        self.messages: list[Message] = []

    def answer(self, line: str, show: Callable[[str], object]) -> None:
        """Answer a line, pass the answer to `show`, and add both to the conversation.

        If the line cannot be answered, pass the error to `show`, and add nothing.
        """
        asked = [*self.messages, {"role": "user", "content": line}]
        try:
            answer = self.predictor.answer(asked, show)
        except DataError as error:
            show(f"({error})")
            return
        self.messages = [*asked, {"role": ANSWERS, "content": answer}]


def to_answer(name: str, value: Any) -> list[Message]:
    """Check and return the messages or the prompt in a cell, without answers at the end.

    Raises:
        DataError: The cell is malformed, or contains only answers.
    """
    messages = as_messages(name, value, "user")
    while messages and messages[-1]["role"] == ANSWERS:
        messages = messages[:-1]
    if not messages:
        raise DataError("the conversation has only answers; expected a message of the user")
    return messages


class _Streamer(BaseStreamer):
    """Pass generated text to `show`; pass a character of several tokens when it is complete."""

    def __init__(self, decode: Callable[[torch.Tensor], list[str]], show: Callable[[str], object]):
        self.decode = decode
        self.show = show
        self.shown = ""
        self.tokens: list[int] = []
        self.is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        """Receive the prompt in the first call, then each new token."""
        if self.is_prompt:
            self.is_prompt = False
            return
        self.tokens += value.flatten().tolist()
        (text,) = self.decode(torch.tensor([self.tokens]))
        if text.startswith(self.shown) and not text.endswith("\ufffd"):
            self.show(text[len(self.shown) :])
            self.shown = text

    def end(self) -> None:
        """Do nothing: `Predictor.answer` shows the remaining text."""
