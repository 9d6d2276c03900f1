"""One row of LLaMA-Factory into a row of ours: names and tags change, what it says does not.

A broken row stays broken, so that the ledger names it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COLUMNS: dict[str, str | None] = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "messages": "conversations",
}
"""Columns that are read where dataset_info.json names none."""
ALL_COLUMNS = (
    "prompt", "query", "response", "history", "messages", "system", "tools", "images", "videos", "audios", "chosen", "rejected",
    "kto_tag",
)  # fmt: skip
TAGS = {
    "role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt",
    "observation_tag": "observation", "function_tag": "function_call", "system_tag": "system",
}  # fmt: skip
ROLES = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "assistant",
    "system_tag": "system",
}


@dataclass(frozen=True, slots=True)
class Named:
    """A dataset as dataset_info.json has it."""

    name: str
    files: tuple[Path, ...]
    formatting: str = "alpaca"
    ranking: bool = False
    columns: dict[str, str | None] = field(default_factory=lambda: dict(COLUMNS))
    """LLaMA-Factory's name of a column -> the one in the rows."""
    tags: dict[str, str] = field(default_factory=lambda: dict(TAGS))
    samples: int | None = None
    """Draw so many rows; more than there are repeats some."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What rows are wanted for."""

    kind: str
    """Kind of rows that the objective takes: conversation, preference, feedback, text."""
    last_only: bool = False
    """Train only the last answer (mask_history)."""
    system: str = ""
    """System message of rows that have none (default_system)."""


FORMATS = {"conversation": "openai", "preference": "preference", "feedback": "feedback", "text": "text"}
"""Kind of rows -> our format in which converted rows are written."""


def as_ours(row: dict[str, Any], named: Named, shape: Shape) -> dict[str, Any]:
    """The row in our layout for its kind."""
    messages = _messages(row, named)
    if shape.kind == "text":
        return {"text": messages[0].get("content") if messages else None}
    system = _cell(row, named, "system")
    if system and not (messages and messages[0].get("role") == "system"):
        messages = [{"role": "system", "content": system}, *messages]
    if shape.system and not (messages and messages[0].get("role") == "system"):
        messages = [{"role": "system", "content": shape.system}, *messages]
    tools = _cell(row, named, "tools")
    made: dict[str, Any] = {"messages": messages, **({"tools": tools} if tools else {})}
    if shape.kind == "preference":
        return {**made, "chosen": _side(row, named, "chosen"), "rejected": _side(row, named, "rejected")}
    if shape.kind == "feedback":
        return {**made, "label": _cell(row, named, "kto_tag")}
    if shape.last_only:
        places = [place for place, message in enumerate(messages) if message.get("role") == "assistant"]
        made["messages"] = [{**m, "weight": 0} if place in places[:-1] else m for place, m in enumerate(messages)]
    return made


def _cell(row: dict[str, Any], named: Named, column: str) -> Any:
    theirs = named.columns.get(column)
    return row.get(theirs) if theirs else None


def _messages(row: dict[str, Any], named: Named) -> list[dict[str, Any]]:
    if named.formatting == "alpaca":
        return _alpaca(row, named)
    turns = _cell(row, named, "messages")
    return [_message(turn, named) for turn in turns] if isinstance(turns, list) else [{"role": None, "content": turns}]


def _alpaca(row: dict[str, Any], named: Named) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for pair in _cell(row, named, "history") or []:
        question, answer = pair if isinstance(pair, list | tuple) and len(pair) == 2 else (pair, None)
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    asked = [part for part in (_cell(row, named, "prompt"), _cell(row, named, "query")) if part]
    question = "\n".join(asked) if all(isinstance(part, str) for part in asked) else asked
    messages.append({"role": "user", "content": question})
    if named.ranking or not named.columns.get("response"):
        return messages
    return [*messages, {"role": "assistant", "content": _cell(row, named, "response")}]


def _message(turn: Any, named: Named) -> dict[str, Any]:
    tags = named.tags
    if not isinstance(turn, dict):
        return {"role": None, "content": turn}
    said, content = turn.get(tags["role_tag"]), turn.get(tags["content_tag"])
    role = next((ROLES[tag] for tag in ROLES if tags[tag] == said), said)
    if said == tags["function_tag"] and isinstance(content, str):
        return {"role": "assistant", "content": "", "tool_calls": _calls(content)}
    calls = {"tool_calls": turn["tool_calls"]} if turn.get("tool_calls") else {}
    return {"role": role, "content": content, **calls}


def _calls(text: str) -> list[Any]:
    try:
        calls = json.loads(text)
    except ValueError:
        return [text]  # no object: the reader of the format says so
    calls = calls if isinstance(calls, list) else [calls]
    return [
        {"type": "function", "function": call} if isinstance(call, dict) and "name" in call else str(call)
        for call in calls
    ]


def _side(row: dict[str, Any], named: Named, column: str) -> Any:
    value = _cell(row, named, column)
    return [_message(value, named)] if isinstance(value, dict) else value
