"""preference rows: `chosen` and `rejected` answers to one prompt, in the layouts of TRL and LLaMA-Factory.

The prompt stands in `prompt` (text or messages), in `conversations` or `messages`, in `instruction` and `input`, or it is
the common beginning of two whole dialogues.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tunesmith.core.errors import DataError
from tunesmith.core.examples import Conversation, Kind, Message, Preference
from tunesmith.data.formats import alpaca, openai, sharegpt
from tunesmith.data.formats.prompt_completion import read_side

KIND: Kind = "preference"
REQUIRED = ("chosen", "rejected")
COLUMNS = (*REQUIRED, "prompt", "messages", "conversations", "instruction", "input", "system", "history", "tools")


def matches(columns: set[str]) -> bool:
    """Whether a row with these columns is a preference row."""
    return set(REQUIRED) <= columns


def read(row: dict[str, Any], source: str) -> Preference:
    """A row as two conversations that differ in what follows the prompt. Raises DataError where they do not differ."""
    chosen, rejected = (read_side(row[name], "assistant", name, source) for name in REQUIRED)
    prompt = _prompt(row, source)
    if prompt is None:
        shared = next((n for n, pair in enumerate(zip(chosen, rejected, strict=False)) if pair[0] != pair[1]), None)
        shared = min(len(chosen), len(rejected)) if shared is None else shared
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if not prompt:
        raise DataError(source, "has no prompt", do="Add a prompt, or give chosen and rejected as whole dialogues")
    if chosen == rejected:
        raise DataError(source, "chosen and rejected are the same", do="Remove the row")
    if not chosen or not rejected:
        empty = "rejected" if chosen else "chosen"
        raise DataError(source, f"{empty} says nothing behind the prompt", do="Remove the row")
    for name, side in zip(REQUIRED, (chosen, rejected), strict=True):
        if side[-1].role != "assistant":
            raise DataError(source, f"{name} must end with an assistant turn", got=side[-1].role)
    tools = openai.read_tools(row.get("tools"), source)
    context = tuple(replace(message, trained=False) for message in prompt)
    better, worse = (Conversation((*context, *answer), source, tools=tools) for answer in (chosen, rejected))
    return Preference(better, worse, source)


def _prompt(row: dict[str, Any], source: str) -> list[Message] | None:
    if row.get("prompt") is not None:
        return read_side(row["prompt"], "user", "prompt", source)
    if row.get("conversations") is not None:
        return list(sharegpt.read(row, source).messages)
    if row.get("messages") is not None:
        return list(openai.read(row, source).messages)
    return alpaca.read_question(row, source) if row.get("instruction") is not None else None
