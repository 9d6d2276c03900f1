"""What a row says, once its layout is forgotten: messages with roles, and where they came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
IGNORED = -100
"""The label of a token that is not trained; torch's cross entropy passes over it."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `tool_calls` are in the OpenAI layout; `trained` is False for assistant turns that only give context."""

    role: Role
    content: str
    tool_calls: tuple[dict[str, Any], ...] = ()
    trained: bool = True

    def as_dict(self) -> dict[str, Any]:
        """The message as chat templates and the OpenAI API want it."""
        plain: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            plain["tool_calls"] = list(self.tool_calls)
        return plain


@dataclass(frozen=True, slots=True)
class Conversation:
    """A row of dialogue. `source` is "faq.jsonl:17"; `expect` lists strings that a right answer contains."""

    messages: tuple[Message, ...]
    source: str
    tools: tuple[dict[str, Any], ...] = ()
    expect: tuple[str, ...] = ()

    def as_dicts(self) -> list[dict[str, Any]]:
        """All messages as plain dicts."""
        return [message.as_dict() for message in self.messages]
