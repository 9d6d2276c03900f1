"""alpaca rows: instruction, optional input, output; optional system and history of [question, answer] pairs."""

from __future__ import annotations

from typing import Any

from tunesmith.core.errors import DataError
from tunesmith.core.examples import Conversation, Kind, Message

KIND: Kind = "conversation"
REQUIRED = ("instruction", "output")
COLUMNS = (*REQUIRED, "input", "system", "history")


def matches(columns: set[str]) -> bool:
    """Whether a row with these columns is an alpaca row."""
    return set(REQUIRED) <= columns


def read(row: dict[str, Any], source: str) -> Conversation:
    """A row as a conversation; `input` follows the instruction on a new line. Raises DataError for wrong types."""
    return Conversation((*read_question(row, source), Message("assistant", _text(row, "output", source))), source)


def read_question(row: dict[str, Any], source: str) -> list[Message]:
    """All turns before the answer: system, history, instruction and input."""
    messages: list[Message] = []
    if row.get("system"):
        messages.append(Message("system", _text(row, "system", source)))
    for pair in row.get("history") or []:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise DataError(source, "history must be pairs of question and answer", got=pair)
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    question = _text(row, "instruction", source)
    if row.get("input"):
        question = f"{question}\n{_text(row, 'input', source)}" if question else _text(row, "input", source)
    return [*messages, Message("user", question)]


def _text(row: dict[str, Any], column: str, source: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise DataError(source, f"{column} must be text", got=value)
    return value
