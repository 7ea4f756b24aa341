"""Entities (labelled spans of a text), and their labels in the BIO scheme."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from errors import DataError

OUTSIDE = "O"
PREFIXED = re.compile(r"[BIESUL]-.+")
# Prefixes of IOBES and BILOU, and the corresponding prefixes of BIO.
TO_BIO = {"B": "B", "S": "B", "U": "B", "I": "I", "E": "I", "L": "I"}


class Entity(NamedTuple):
    """A labelled span of a sequence.

    Attributes:
        start: Index of its first character, word or token.
        end: Index after its last character, word or token.
        label: Its type, such as PER.
    """

    start: int
    end: int
    label: str


def uses_prefixes(names: Iterable[str]) -> bool:
    """Return whether labels mark entities by prefixes, as in BIO.

    E- and L- count as prefixes only if another label begins with B-, I-, S- or U-.

    Raises:
        DataError: Some labels have a prefix, and others have none.
    """
    names = [name for name in names if name != OUTSIDE]
    prefixed = [name for name in names if PREFIXED.fullmatch(name)]
    if not any(name[0] in "BISU" for name in prefixed):
        return False
    if others := sorted(set(names) - set(prefixed)):
        raise DataError(
            f"the labels {prefixed[0]!r} and {others[0]!r}; expected a prefix on all labels or on "
            "none"
        )
    return True


def to_bio(names: Sequence[str]) -> list[str]:
    """Convert labels in IOB1, IOBES or BILOU to BIO; labels in BIO are unchanged."""
    converted: list[str] = []
    for name in names:
        if name != OUTSIDE:
            kind = name[2:]
            continues = converted and converted[-1][2:] == kind and TO_BIO[name[0]] == "I"
            name = f"{'I' if continues else 'B'}-{kind}"
        converted.append(name)
    return converted


def entities_of(names: Sequence[str]) -> list[Entity]:
    """Return the entities of a sequence of labels.

    As in seqeval by default, a label with the prefix I- begins an entity unless it continues an
    entity of the same type. A label without the prefix B- or I-, other than O, is an entity by
    itself.
    """
    found: list[Entity] = []
    for index, name in enumerate(names):
        if name == OUTSIDE:
            continue
        prefix, _, kind = name.partition("-")
        if prefix == "I" and found and found[-1].end == index and found[-1].label == kind:
            found[-1] = Entity(found[-1].start, index + 1, kind)
        else:
            is_prefixed = prefix in ("B", "I") and kind
            found.append(Entity(index, index + 1, kind if is_prefixed else name))
    return found


def parse_entities(name: str, value: Any, text: str) -> list[Entity]:
    """Check the entities in a cell, and return them in the order of the text.

    Args:
        name: Name of the column.
        value: A list of entities, each an object or list with `start`, `end` and `label`.
        text: Text that contains the entities; `start` and `end` are indices of its characters.

    Raises:
        DataError: The cell is malformed, an entity is empty or not inside the text, or two entities
            overlap.
    """
    if not isinstance(value, list):
        raise DataError(f"{name!r} holds {_kind(value)}; expected a list of entities")
    entities = sorted(_parse_entity(name, item) for item in value)
    for start, end, label in entities:
        if not 0 <= start < end <= len(text):
            raise DataError(
                f"the entity {label!r} has start {start} and end {end}; expected "
                f"0 <= start < end <= {len(text)}, the number of characters of the text"
            )
    for first, second in zip(entities, entities[1:], strict=False):
        if second.start < first.end:
            parts = [repr(text[entity.start : entity.end]) for entity in (first, second)]
            raise DataError(
                f"the entities {parts[0]} and {parts[1]} overlap; expected separate entities"
            )
    return entities


def _parse_entity(name: str, item: Any) -> Entity:
    values = [item.get(key) for key in Entity._fields] if isinstance(item, dict) else item
    if not isinstance(values, list) or len(values) != 3:
        raise DataError(
            f"{name!r}: {_kind(item)} in the list; expected an entity with start, end and label"
        )
    start, end, label = values
    for key, place in (("start", start), ("end", end)):
        if isinstance(place, bool) or not isinstance(place, (int, float)) or place % 1:
            raise DataError(f"the {key} of an entity is {place!r}; expected a whole number")
    if not isinstance(label, str) or label in ("", OUTSIDE):
        raise DataError(
            f"the label of an entity is {label!r}; expected a name other than {OUTSIDE}"
        )
    return Entity(int(start), int(end), label)


def _kind(value: Any) -> str:
    kinds = {str: "text", list: "a list", dict: "an object", bool: "true or false"}
    return "null" if value is None else kinds.get(type(value), "a number")
