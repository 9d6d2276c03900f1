"""openai rows: `messages` with role and content (text or text parts), tool calls, optional `tools`."""

from __future__ import annotations

import json
from typing import Any, get_args

from tunesmith.core.errors import DataError, did_you_mean
from tunesmith.core.examples import Conversation, Kind, Message, Role

KIND: Kind = "conversation"
REQUIRED = ("messages",)
COLUMNS = (*REQUIRED, "tools")
ROLES: tuple[str, ...] = get_args(Role)


def matches(columns: set[str]) -> bool:
    """Whether a row with these columns is a list of OpenAI messages."""
    return "messages" in columns


def read(row: dict[str, Any], source: str) -> Conversation:
    """A row as a conversation. A message with `weight: 0` is context that is not trained (as in OpenAI's files)."""
    turns = row["messages"]
    if not isinstance(turns, list):
        raise DataError(source, "messages must be a list", got=turns)
    messages = tuple(read_message(turn, source) for turn in turns)
    return Conversation(messages, source, tools=read_tools(row.get("tools"), source))


def read_message(turn: Any, source: str) -> Message:
    """One message dict. Raises DataError for unknown roles and for content that is not text."""
    if not isinstance(turn, dict) or "role" not in turn:
        raise DataError(source, "a message needs role and content", got=turn)
    said = str(turn["role"])
    role: Any = {"developer": "system", "function": "tool"}.get(said, said)
    if role not in ROLES:
        raise DataError(source, "unknown role", got=turn["role"], do=did_you_mean(said, ROLES))
    calls = turn.get("tool_calls") or []
    if not isinstance(calls, list) or not all(_is_function(call) for call in calls):
        raise DataError(source, "tool_calls must be a list of objects, each with a function", got=calls)
    trained = turn.get("weight", 1) != 0
    return Message(role, _content(turn.get("content"), source, empty=bool(calls)), tuple(calls), trained)


def _is_function(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("function"), dict)


def _content(content: Any, source: str, *, empty: bool) -> str:
    if content is None and empty:
        return ""
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
        texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
        if len(texts) < len(content):
            raise DataError(source, "only text parts can be trained", got=content)
        return "".join(texts)
    if not isinstance(content, str):
        raise DataError(source, "message content must be text", got=content)
    return content


def read_tools(tools: Any, source: str) -> tuple[dict[str, Any], ...]:
    """The tools of a row: a list, or the same as JSON text; none for null or empty text."""
    if isinstance(tools, str):
        if not tools.strip():
            return ()
        try:
            tools = json.loads(tools)
        except ValueError:
            raise DataError(source, "tools is text that is not JSON", got=tools) from None
    if tools is None:
        return ()
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise DataError(source, "tools must be a list of objects", got=tools)
    found = tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in tools)
    if not all(_is_function(tool) for tool in found):
        raise DataError(source, "the function of a tool must be an object", got=tools)
    return found
