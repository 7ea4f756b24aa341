"""Render conversations with the chat template of a tokenizer, and label their answers."""

import re
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from errors import DataError

from .messages import ANSWERS, Message

MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
# For tokenizers without a chat template. END is replaced with eos_token, or with sep_token if there
# is no eos_token. bos_token is prepended if the tokenizer adds it to every text.
DEFAULT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>\\n' + message['content'] + END + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}
"""
Span = tuple[int, int]


class Encoded(NamedTuple):
    """A tokenized conversation.

    Attributes:
        input_ids: All token ids.
        labels: The token ids of the answers, and -100 at all other positions.
        ends: The last token id of each answer.
    """

    input_ids: list[int]
    labels: list[int]
    ends: list[int]


def use_template(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Set `DEFAULT_TEMPLATE` in a tokenizer that has no chat template; return lines to print.

    Raises:
        DataError: The tokenizer is not a fast one; has several templates, none of which is the
            default; or has no template, no EOS token and no SEP token.
    """
    if not tokenizer.is_fast:
        name = type(tokenizer).__name__
        raise DataError(f"{name} returns no offsets of tokens; expected a fast tokenizer")
    if tokenizer.chat_template:
        try:
            tokenizer.get_chat_template()
        except ValueError as error:  # several templates, none of which is the default
            reason = str(error).splitlines()[0]
            raise DataError(f"the tokenizer has no default chat template ({reason})") from None
        return []
    name = "eos_token" if tokenizer.eos_token else "sep_token"
    if not getattr(tokenizer, name):
        raise DataError(
            "the tokenizer has no chat_template, eos_token or sep_token; expected one of them"
        )
    begins = tokenizer.bos_token_id in tokenizer("").input_ids[:1]
    template = ("{{- bos_token -}}\n" if begins else "") + DEFAULT_TEMPLATE.replace("END", name)
    tokenizer.chat_template = template
    return ["the tokenizer has no chat template: DEFAULT_TEMPLATE of reading/answers.py is used"]


def render(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], before_answer: bool = False
) -> str:
    """Render messages with the chat template.

    Args:
        before_answer: Whether to append the generation prompt.

    Raises:
        DataError: The template rejects the messages.
    """
    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=before_answer
        )
    except Exception as error:  # a template is a program and can raise any exception
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"the chat template does not accept the messages ({reason})") from None


def find_answers(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], answers: list[int]
) -> tuple[str, list[Span]]:
    """Render a conversation, and return the text and the spans of the answers.

    If the template has `{% generation %}` blocks, the contents of these blocks are the answers.
    Otherwise, for each answer, render the messages before the answer, with the generation prompt,
    and render the messages up to and including the answer. Each of the two texts must be a prefix
    of the full text; the answer is the difference between the two texts.

    Raises:
        DataError: The template rejects the messages; has blocks, but not one for each message of
            the assistant; or has no blocks, and the first message is an answer, or a text is not a
            prefix of the full text because the template renders a message differently when it is
            generated or when other messages follow.
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
                f"the chat template renders message {answer + 1} differently when it is generated "
                "or when other messages follow; expected a template with {% generation %} blocks "
                "or, if other messages follow, --targets last"
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
            f"the generation blocks of the chat template mark {len(marked)} answers; expected "
            f"{len(of_assistant)}, the number of messages of the assistant"
        )
    return text, [marked[of_assistant.index(answer)] for answer in answers]


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids of special and added tokens."""
    return {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}


def render_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], answers: list[int]
) -> tuple[str, list[Span]]:
    """Render a conversation, and return the text and the spans of the answers; see `find_answers`.

    The span of an answer excludes white space after its end-of-turn token.

    Args:
        answers: Indices of the target messages.

    Raises:
        DataError: See `find_answers`; or the template omits or changes a message.
    """
    text, spans = find_answers(tokenizer, messages, answers)
    parts = [text[begin:end].rstrip() for begin, end in spans]
    _check_texts(messages, answers, text, parts)
    return text, [(begin, begin + len(part)) for (begin, _), part in zip(spans, parts, strict=True)]


def label_answers(
    tokenizer: PreTrainedTokenizerBase,
    ids: list[int],
    offsets: list[Span],
    spans: list[Span],
    special: set[int],
) -> Encoded:
    """Label the tokens of the answers.

    Args:
        ids: Token ids of a conversation.
        offsets: Span of each token in the text.
        spans: Spans of the answers.
        special: Return value of `special_tokens`.

    Raises:
        DataError: An answer does not end with a special token, contains its last token more than
            once, or begins inside a token.
    """
    labels = [-100] * len(ids)
    ends: list[int] = []
    for begin, end in spans:
        inside = [n for n, (start, _) in enumerate(offsets) if begin <= start < end]
        ends.append(_end_of(tokenizer, [ids[n] for n in inside], special))
        for n in range(max(0, inside[0] - 1), inside[0]):  # the preceding token, if any
            start, stop = offsets[n]
            if ids[n] in special:  # exclude the white space that some special tokens strip
                stop = start + len(tokenizer.convert_ids_to_tokens(ids[n]))
            if stop > begin:
                token = tokenizer.decode(ids[n : n + 1])
                raise DataError(
                    f"the token {token!r} contains the beginning of an answer and text before it; "
                    "expected an answer that begins at a token boundary"
                )
        for n in inside:
            labels[n] = ids[n]
    labels[:1] = [-100]  # the first token is not predicted
    return Encoded(ids, labels, ends)


def _check_texts(messages: list[Message], answers: list[int], text: str, parts: list[str]) -> None:
    """Check that the text contains each message. White space is ignored.

    Answers that are not targets are not checked, since some templates remove the reasoning of
    earlier answers.
    """
    targets = dict(zip(answers, parts, strict=True))
    whole = "".join(text.split())
    for n, message in enumerate(messages):
        place = "".join(targets[n].split()) if n in targets else whole
        is_kept = "".join(message["content"].split()) in place
        if not is_kept and (n in targets or message["role"] != ANSWERS):
            raise DataError(
                f"the chat template omits or changes message {n + 1}, of the "
                f"{message['role']}; expected its full content"
            )


def _end_of(tokenizer: PreTrainedTokenizerBase, ids: list[int], special: set[int]) -> int:
    """Return the end-of-turn token of an answer."""
    if not ids or ids[-1] not in special:
        last = tokenizer.decode(ids[-1:])
        raise DataError(
            f"the chat template ends an answer with {last!r}; expected a special token, so that "
            "generation can stop there"
        )
    if ids[-1] in ids[:-1]:
        mark = tokenizer.decode(ids[-1:])
        raise DataError(
            f"an answer contains {mark!r}, its end-of-turn token; expected it only at the end"
        )
    return ids[-1]
