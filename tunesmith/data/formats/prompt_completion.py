"""prompt-completion rows: `prompt` and `completion`, each text or a list of messages (as TRL has them)."""

from __future__ import annotations

from typing import Any

from tunesmith.core.errors import DataError
from tunesmith.core.examples import Conversation, Kind, Message, Role
from tunesmith.data.formats.openai import read_message, read_tools
from tunesmith.data.formats.sharegpt import read_turn

KIND: Kind = "conversation"
REQUIRED = ("prompt", "completion")
COLUMNS = (*REQUIRED, "tools")


def matches(columns: set[str]) -> bool:
    """Whether a row with these columns is a prompt-completion row."""
    return set(REQUIRED) <= columns


def read(row: dict[str, Any], source: str) -> Conversation:
    """A row as a conversation: assistant turns of the prompt are context, those of the completion are trained."""
    prompt = read_side(row["prompt"], "user", "prompt", source)
    completion = read_side(row["completion"], "assistant", "completion", source)
    context = [Message(m.role, m.content, m.tool_calls, trained=False) for m in prompt]
    return Conversation((*context, *completion), source, tools=read_tools(row.get("tools"), source))


def read_side(value: Any, role: Role, column: str, source: str) -> list[Message]:
    """Text as one message of `role`, or a message, or a list of messages, in the openai or the sharegpt layout."""
    if isinstance(value, str):
        return [Message(role, value)]
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list):
        raise DataError(source, f"{column} must be text or a list of messages", got=value)
    return [read_turn(t, source) if isinstance(t, dict) and "from" in t else read_message(t, source) for t in turns]
