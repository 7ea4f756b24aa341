"""Check the messages of conversations."""

from typing import Any

from errors import DataError

ROLES = ("system", "user", "assistant")
ANSWERS = "assistant"
Message = dict[str, str]


def as_messages(name: str, value: Any, role: str = "") -> list[Message]:
    """Check and return the messages in a cell.

    Args:
        name: Name of the column.
        role: Role of the message if the cell is a string instead of a list of messages.
            Default: a string raises DataError.

    Raises:
        DataError: The cell is malformed.
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
    if others:  # for example tool calls, which would be ignored
        raise DataError(f"a message has the key {others[0]!r}; expected only role and content")
    if (role := message.get("role")) not in ROLES:
        raise DataError(f"a message has the role {role!r}; expected one of {', '.join(ROLES)}")
    if not isinstance(content := message.get("content"), str):
        raise DataError(f"the content of a message is {_kind(content)}; expected text")


def _kind(value: Any) -> str:
    kinds = {str: "text", list: "a list", dict: "an object", bool: "true or false"}
    return "null" if value is None else kinds.get(type(value), "a number")


def as_conversation(row: dict[str, Any]) -> tuple[list[Message], list[int]]:
    """Return the messages of a row, and the indices of the possible target answers.

    If the row has several columns, its messages are concatenated, and only answers in the columns
    after the first are possible targets.

    Raises:
        DataError: The messages are malformed, or there is no possible target.
    """
    first, *rest = row.items()
    messages = as_messages(*first, "user" if rest else "")
    begin = len(messages) if rest else 0
    for cell in rest:
        messages += as_messages(*cell, ANSWERS)
    answers = [n for n in range(begin, len(messages)) if messages[n]["role"] == ANSWERS]
    if not answers:
        raise DataError("no answer to predict; expected a message of the assistant")
    return messages, answers
