"""prompt-completion rows: `prompt` and `completion`, each text or a list of messages (as TRL has them)."""

from __future__ import annotations

from typing import Any

from tunesmith.core.errors import DataError
from tunesmith.core.examples import Conversation, Message, Role
from tunesmith.data.formats.openai import read_message, read_tools

REQUIRED = ("prompt", "completion")
COLUMNS = (*REQUIRED, "tools")


def matches(columns: set[str]) -> bool:
    """Whether a row with these columns is a prompt-completion row."""
    return set(REQUIRED) <= columns


def read(row: dict[str, Any], source: str) -> Conversation:
    """A row as a conversation: assistant turns of the prompt are context, those of the completion are trained."""
    prompt = _messages(row["prompt"], "user", "prompt", source)
    completion = _messages(row["completion"], "assistant", "completion", source)
    context = [Message(m.role, m.content, m.tool_calls, trained=False) for m in prompt]
    return Conversation((*context, *completion), source, tools=read_tools(row.get("tools"), source))


def _messages(value: Any, role: Role, column: str, source: str) -> list[Message]:
    if isinstance(value, str):
        return [Message(role, value)]
    if isinstance(value, list):
        return [read_message(turn, source) for turn in value]
    raise DataError(source, f"{column} must be text or a list of messages", got=value)
