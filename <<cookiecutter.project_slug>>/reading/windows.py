"""Tokenize texts of any length into overlapping windows of limited length."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from errors import RunError

from .tokens import fill_empty

OVERLAP = 4  # adjacent windows share 1 / OVERLAP of the tokens of a full window


class Window(NamedTuple):
    """A part of a text.

    Attributes:
        input_ids: Token ids, with special tokens.
        prefix: Number of special tokens before the text.
        begin: Index of the window's first token among the tokens of the text.
        end: Index after the window's last token.
    """

    input_ids: list[int]
    prefix: int
    begin: int
    end: int

    def position(self, token: int) -> int:
        """Return the index in `input_ids` of a token of the text."""
        return self.prefix + token - self.begin


@dataclass
class Tokens:
    """The tokens of a text, without special tokens.

    Attributes:
        offsets: Start and end of each token in characters, without surrounding white space.
        words: Index of the word of each token, as in `BatchEncoding.word_ids`.
        windows: Windows of at most `max_len` tokens. Each window is longer than its overlap with
            the previous window.
    """

    offsets: list[tuple[int, int]] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)

    def bounds(self, inside: Collection[int] = ()) -> Iterator[tuple[Window, int, int]]:
        """Yield each window, and the range of tokens to label in it. The ranges do not overlap.

        A range ends in the middle of the overlap of its window with the next window, where the next
        range begins. If `inside` contains the token in the middle, the range ends before the
        nearest token that is not in `inside`: a token of the overlap, or the first token after it.
        If all of these tokens are in `inside`, the range ends in the middle.
        """
        begin = 0
        for window, following in zip(self.windows, [*self.windows[1:], None], strict=True):
            end = window.end
            if following is not None:
                middle = (following.begin + window.end) // 2
                overlap = range(following.begin, window.end + 1)
                free = [token for token in overlap if token not in inside]
                end = min(free or [middle], key=lambda token: abs(token - middle))  # noqa: B023
            yield window, begin, end
            begin = end


def tokenize_in_windows(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_len: int
) -> list[Tokens]:
    """Tokenize texts, and divide those with more than `max_len` tokens into windows.

    Raises:
        RunError: The tokenizer is not a fast one, or `max_len` leaves no room for text.
    """
    if not tokenizer.is_fast:
        name = type(tokenizer).__name__
        raise RunError(f"{name} returns no character offsets; expected a fast tokenizer")
    room = max_len - tokenizer.num_special_tokens_to_add()
    if room < 1:
        raise RunError(
            f"--max_len {max_len}: no room for text; expected more than {max_len - room}"
        )
    tokenizer.truncation_side = "right"
    tokens = tokenizer(
        list(texts),
        truncation=True,
        max_length=max_len,
        stride=room // OVERLAP,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    fill_empty({"input_ids": tokens["input_ids"]}, tokenizer)
    found = [Tokens() for _ in texts]
    for number, row in enumerate(tokens["overflow_to_sample_mapping"]):
        is_text = [part is not None for part in tokens.sequence_ids(number)]
        prefix = is_text.index(True) if any(is_text) else 0
        whole = found[row]
        begin = whole.windows[-1].end - room // OVERLAP if whole.windows else 0
        end = begin + sum(is_text)
        new = slice(prefix + len(whole.offsets) - begin, prefix + sum(is_text))
        offsets = tokens["offset_mapping"][number][new]
        whole.offsets += [_without_space(texts[row], *part) for part in offsets]
        whole.words += tokens.word_ids(number)[new]
        whole.windows.append(Window(tokens["input_ids"][number], prefix, begin, end))
    return found


def _without_space(text: str, start: int, end: int) -> tuple[int, int]:
    """Exclude white space at both ends of a span, unless the span has nothing else."""
    part = text[start:end]
    if not part.strip():
        return start, end
    return start + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip())
