"""What a row says, once its layout is forgotten: dialogue, preference, verdict or text, and where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
Kind = Literal["conversation", "preference", "feedback", "text"]
"""What rows are: dialogue, two answers of which one is better, an answer that is good or bad, plain text."""
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


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to the same prompt, the better one first. Only the answers are trained."""

    chosen: Conversation
    rejected: Conversation
    source: str


@dataclass(frozen=True, slots=True)
class Feedback:
    """A dialogue whose last answer was found good or bad. Only that answer is trained."""

    judged: Conversation
    good: bool
    source: str


@dataclass(frozen=True, slots=True)
class Text:
    """A document for pre-training."""

    text: str
    source: str


Example = Conversation | Preference | Feedback | Text


def dialogue_of(example: Example) -> Conversation | None:
    """The dialogue in an example that a model can be asked with: of two answers the better one; None for plain text."""
    if isinstance(example, Preference):
        return example.chosen
    if isinstance(example, Feedback):
        return example.judged
    return example if isinstance(example, Conversation) else None
