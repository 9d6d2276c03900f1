"""What a package is asked for its proofs: rows of the run or of the user, else eight built-in questions; template cases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from tunesmith.core.config import Config
from tunesmith.core.errors import DataError
from tunesmith.core.examples import Conversation, Example, Message, Role, dialogue_of
from tunesmith.data.dataset import dataset_folder
from tunesmith.data.render import render_text
from tunesmith.data.source import read_examples

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase


class ProofConfig(Config):
    """How the package is proven to answer like the model that was trained."""

    data: str | None = None
    """File of rows whose questions are asked; null takes the held-out rows of the run, filled up with
    built-in questions where they are too few."""
    prompts: Annotated[int, Field(ge=1, le=100)] = 8
    """How many questions are asked."""
    tokens: Annotated[int, Field(ge=1, le=1024)] = 48
    """Longest answer in tokens."""
    agreement: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Smallest share of greedy answers that agree (docs/export.md) where weights were rounded: GGUF, bf16. fp32 needs all."""


QUESTIONS = (
    "What is the capital of France?",
    "What is 17 + 25?",
    "Name three colours.",
    "Translate 'good morning' into Spanish.",
    "用一句话介绍北京。",
    "Write a Python line that prints the numbers from 1 to 10.",
    "How many days does a week have?",
    "  Is water wet? 😀 ",
)

_TEXTS = (
    "Hello",
    "1. one\n\n2. two\n\n10. 3.14159, 2026-11-22 and 1,000,000",
    "水壶多少钱？在2024年是399元，打8折。",
    "café 😀🚀👩‍👩‍👧 naïve — “quotes” …",
    "def f(x):\n    if x > 10:\n\treturn [x ** 2, 'a\\n']",
    "  two spaces before, three behind   ",
    "\n\nline breaks around\n\n",
    "<b>&amp;</b> {{ braces }} {% percent %} \"double\" 'single' `tick`",
)


def proof_rows(config: ProofConfig, dataset: str | None) -> tuple[list[Conversation], str]:
    """The rows to prove with, at most `prompts`, and where they come from in words.

    Raises DataError for a file without a row that can be asked.
    """
    if config.data:
        rows = _askable(read_examples([config.data]).examples)
        if not rows:
            raise DataError(config.data, "has no row that ends with a user turn or an answer to one")
        return _spread(rows, config.prompts), config.data
    folder = dataset_folder(dataset) if dataset else None
    held_out = folder / "held_out.jsonl" if folder else None
    if held_out and held_out.is_file() and held_out.stat().st_size:
        rows = _askable(read_examples([str(held_out)]).examples)
        if rows:
            more = _built_in(config.prompts - len(rows))
            also = f" and {len(more)} built-in questions" if more else ""
            return [*_spread(rows, config.prompts), *more], f"held-out rows of the run{also}"
    return _built_in(config.prompts), "built-in questions"


def _built_in(count: int) -> list[Conversation]:
    made = [Conversation((Message("user", text),), f"built-in:{n}") for n, text in enumerate(QUESTIONS, 1)]
    return made[: max(0, count)]


def question(row: Conversation) -> tuple[Message, ...]:
    """The messages of a row up to its last user turn."""
    last = max(number for number, message in enumerate(row.messages) if message.role == "user")
    return row.messages[: last + 1]


def template_cases(tokenizer: PreTrainedTokenizerBase) -> list[tuple[Message, ...]]:
    """Conversations that end with a user turn: plain, with system text, multi-turn, over texts tokenizers get wrong.

    Those that the chat template refuses (some take no system message) are left out: they cannot be trained either.
    """
    talk: tuple[Role, ...] = ("user", "assistant", "user", "assistant", "user")
    talks: list[tuple[Role, ...]] = [talk[:1], talk[:3], talk]
    plans: list[tuple[Role, ...]] = [*talks, *(("system", *plan) for plan in talks)]
    cases = [
        tuple(Message(role, _TEXTS[(start + place) % len(_TEXTS)]) for place, role in enumerate(plan))
        for plan in plans
        for start in range(0, len(_TEXTS), len(plan))  # every text in every kind of talk
    ]
    return [messages for messages in cases if _renders(tokenizer, messages)]


def _renders(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> bool:
    try:
        render_text(tokenizer, messages, generation_prompt=True)
    except DataError:
        return False
    return True


def bare(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The same messages without white space around their texts."""
    return tuple(Message(message.role, message.content.strip()) for message in messages)


def _askable(examples: Sequence[Example]) -> list[Conversation]:
    roles = {"system", "user", "assistant"}
    return [
        row
        for row in map(dialogue_of, examples)
        if row
        and not row.tools
        and any(message.role == "user" for message in row.messages)
        and all(message.role in roles and not message.tool_calls for message in row.messages)
    ]


def _spread(rows: Sequence[Conversation], count: int) -> list[Conversation]:
    """At most `count` rows at even distances, so that one topic at the start does not stand for all."""
    step = max(1.0, len(rows) / count)
    return [rows[int(number * step)] for number in range(min(count, len(rows)))]
