"""Align the labels of words or characters with the tokens of a text."""

import json
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

from errors import DataError

from .entities import OUTSIDE, Entity, entities_of, parse_entities, to_bio
from .windows import Tokens


@dataclass(frozen=True)
class Labelled:
    """A text with its entities.

    Attributes:
        text: The text, or the words joined by spaces.
        entities: Entities, with start and end in characters. If labels have no prefixes, each
            word with a label other than O is an entity.
        words: Start and end of each word in the text, in characters. None if the row has a text
            and its entities instead of words and labels: an entity may then begin and end at any
            token.
        is_converted: Whether the labels were converted from another scheme to BIO.
    """

    text: str
    entities: list[Entity]
    words: list[tuple[int, int]] | None = None
    is_converted: bool = False


def parse_row(cells: tuple, spans_column: str | None, has_prefixes: bool) -> Labelled:
    """Check and convert the cells of a row.

    Args:
        cells: A text and its entities as JSON; or words and labels, as lists or separated by
            white space.
        spans_column: Name of the column of the entities; None if the cells are words and labels.
        has_prefixes: Whether labels mark entities by prefixes, as in BIO.

    Raises:
        DataError: The entities are invalid (see `parse_entities`), or the numbers of words and
            labels differ.
    """
    if spans_column is not None:
        text, cell = cells
        return Labelled(text, parse_entities(spans_column, json.loads(cell), text))
    words, names = map(items, cells)
    if len(words) != len(names):
        raise DataError(f"{len(words)} words, {len(names)} labels; expected equal numbers")
    in_bio = to_bio(names) if has_prefixes else names
    text, places = join_words(words)
    entities = [
        Entity(places[start][0], places[end - 1][1], label)
        for start, end, label in entities_of(in_bio)
    ]
    return Labelled(text, entities, places, in_bio != names)


def join_words(words: list[str]) -> tuple[str, list[tuple[int, int]]]:
    """Return words joined by spaces, and the start and end of each word in the text."""
    ends = accumulate(len(word) + 1 for word in words)
    places = [(end - 1 - len(word), end - 1) for word, end in zip(words, ends, strict=True)]
    return " ".join(words), places


def items(cell: Any) -> list[str]:
    """Return a list unchanged; split a text at white space."""
    return cell.split() if isinstance(cell, str) else cell


class Unit(NamedTuple):
    """A token or a word.

    Attributes:
        token: Index of the token, or of the first token of the word.
        start: Index of the first character of the token or word.
        end: Index after the last character.
    """

    token: int
    start: int
    end: int


def units_of(tokens: Tokens, words: list[tuple[int, int]] | None) -> list[Unit]:
    """Return the units of a text: its tokens, or its words if `words` is given.

    A word in which no token begins is omitted.
    """
    if words is None:
        return [Unit(token, *place) for token, place in enumerate(tokens.offsets)]
    units = []
    token = 0
    for start, end in words:
        while token < len(tokens.offsets) and _is_before(tokens.offsets[token], start):
            token += 1
        if token < len(tokens.offsets) and tokens.offsets[token][0] < end:
            units.append(Unit(token, start, end))
    return units


def _is_before(place: tuple[int, int], start: int) -> bool:
    """Return whether a token begins before the character at index `start`, or is empty."""
    return place[0] < start or place[0] == place[1]


@dataclass
class TokenLabels:
    """The labels of the tokens of a text.

    Attributes:
        names: The label of each labelled token, by the index of the token.
        inside: For each entity, the indices of the tokens after its first token, up to its last
            labelled token. If possible, no range of `Tokens.bounds` begins at one of these tokens.
        widened: Number of entities that begin or end inside a token.
        lost: Number of entities without a token.
    """

    names: dict[int, str] = field(default_factory=dict)
    inside: set[int] = field(default_factory=set)
    widened: int = 0
    lost: int = 0


def label_tokens(row: Labelled, tokens: Tokens, has_prefixes: bool) -> TokenLabels:
    """Label all tokens of a text or, if the row has words, the first token of each word.

    Raises:
        DataError: Two entities share a token.
    """
    units = units_of(tokens, row.words)
    found = TokenLabels(dict.fromkeys((unit.token for unit in units), OUTSIDE))
    last = 0
    for start, end, label in row.entities:
        first = last
        while first < len(units) and units[first].end <= start:
            first += 1
        if last and units[last - 1].end > start:
            shared = row.text[slice(*units[last - 1][1:])]
            raise DataError(
                f"two entities share the token {shared!r}; expected one entity per token"
            )
        last = first
        while last < len(units) and units[last].start < end:
            last += 1
        members = units[first:last]
        if not members:
            found.lost += 1
            continue
        found.widened += members[0].start < start or members[-1].end > end
        prefixes = ["B-", *["I-"] * (len(members) - 1)] if has_prefixes else [""]
        for unit, prefix in zip(members, prefixes, strict=True):
            found.names[unit.token] = prefix + label
        found.inside.update(range(members[0].token + 1, members[-1].token + 1))
    return found
