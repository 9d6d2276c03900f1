"""sharegpt rows: `conversations` of {from, value} turns, optional `system` and `tools`."""

from __future__ import annotations

import json
from typing import Any

from tunesmith.core.errors import DataError, did_you_mean
from tunesmith.core.examples import Conversation, Kind, Message, Role
from tunesmith.data.formats.openai import read_tools

KIND: Kind = "conversation"
REQUIRED = ("conversations",)
COLUMNS = (*REQUIRED, "system", "tools")
ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
    "system": "system",
}


def matches(columns: set[str]) -> bool:
    """Whether a row with these columns is a sharegpt row."""
    return "conversations" in columns


def read(row: dict[str, Any], source: str) -> Conversation:
    """A row as a conversation; `function_call` turns become tool calls. Raises DataError for broken turns."""
    turns = row["conversations"]
    if not isinstance(turns, list):
        raise DataError(source, "conversations must be a list", got=turns)
    messages = [read_turn(turn, source) for turn in turns]
    if row.get("system"):
        if not isinstance(row["system"], str):
            raise DataError(source, "system must be text", got=row["system"])
        messages.insert(0, Message("system", row["system"]))
    return Conversation(tuple(messages), source, tools=read_tools(row.get("tools"), source))


def read_turn(turn: Any, source: str) -> Message:
    """One {from, value} turn as a message."""
    if not isinstance(turn, dict):
        raise DataError(source, "a turn must have from and value", got=turn)
    said, value = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    if not isinstance(said, str) or said not in ROLES:
        raise DataError(source, "unknown speaker in from", got=said, do=did_you_mean(str(said), list(ROLES)))
    if not isinstance(value, str):
        raise DataError(source, "value must be text", got=value)
    if said == "function_call":
        return Message("assistant", "", _calls(value, source))
    return Message(ROLES[said], value)


def _calls(value: str, source: str) -> tuple[dict[str, Any], ...]:
    try:
        calls = json.loads(value)
    except ValueError:
        raise DataError(source, "function_call is not JSON", got=value) from None
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and "name" in call for call in calls):
        raise DataError(source, "function_call needs name and arguments", got=value)
    return tuple({"type": "function", "function": call} for call in calls)
