"""A conversation through the model's own chat template into token ids and a loss mask. Knows no files.

Trained are the assistant turns: what follows the generation prompt, up to and including the token that ends the turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import DataError
from tunesmith.core.examples import Conversation, Message
from tunesmith.core.files import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Rendered:
    """A row as the model sees it; `ids` and `trained` are of one length, at most the cutoff."""

    ids: list[int]
    trained: list[bool]
    lost_tokens: int = 0
    """Tokens cut off behind the cutoff."""
    lost_trained: int = 0
    """Trained tokens among them."""
    end_trained: bool = True
    """Whether the token that ends the last assistant turn is trained."""


def template_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Identity of chat template and vocabulary; rows rendered under another one must not be trained on."""
    return fingerprint([tokenizer.chat_template, tokenizer.get_vocab()])


def render_text(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    tools: Sequence[dict[str, Any]] = (),
    generation_prompt: bool = False,
) -> str:
    """The text of a conversation by the model's chat template. Raises DataError when the template refuses it."""
    from jinja2.exceptions import TemplateError

    try:
        return str(
            tokenizer.apply_chat_template(
                [message.as_dict() for message in messages], tools=list(tools) or None,
                tokenize=False, add_generation_prompt=generation_prompt,
            )
        )  # fmt: skip
    except TemplateError as error:
        raise DataError("", f"the chat template refuses it: {error}") from None


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokens of rendered text; special tokens are where the text names them, none are added."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def render(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, cutoff: int) -> Rendered:
    """Render one row, at most `cutoff` tokens long (the end is cut off).

    Raises DataError with the reason why a row cannot be trained on; `where` is left to the caller.
    """
    messages = conversation.messages
    if not any(message.role == "assistant" for message in messages):
        raise DataError("", "no assistant turn", do="Add one or remove the row")
    _refuse_control_text(messages, tokenizer)
    text = render_text(tokenizer, messages, tools=conversation.tools)
    _refuse_swallowed(conversation, text)
    spans = _trained_spans(conversation, tokenizer, text)
    if not spans:
        raise DataError("", "no assistant turn is trained", do="Remove the row")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
    trained = [False] * len(ids)
    for start, end in spans:
        first, last = (_token_at(tokenizer, text, ids, offsets, place) for place in (start, end))
        trained[first:last] = [True] * (last - first)
    end_token = _ends_turn(tokenizer, ids, trained)
    return Rendered(
        ids[:cutoff], trained[:cutoff], max(0, len(ids) - cutoff), sum(trained[cutoff:]),
        end_trained=end_token is not None and end_token < cutoff,
    )  # fmt: skip


def render_text_row(text: str, tokenizer: PreTrainedTokenizerBase) -> Rendered:
    """A document as tokens that are all trained, with the end token behind it. Raises DataError as `render` does."""
    for token in _special(tokenizer):
        if token in text:
            raise DataError("", f"text contains the control token {token!r}", do="Remove it from the row")
    end = tokenizer.eos_token_id
    ids = [*token_ids(tokenizer, text), *([end] if end is not None else [])]
    return Rendered(ids, [True] * len(ids), end_trained=end is not None)


def _special(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def _refuse_control_text(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> None:
    """Text such as `<|im_end|>` inside a message would end the turn there and teach the model to do so."""
    for token in _special(tokenizer):
        if any(token in message.content for message in messages):
            raise DataError("", f"text contains the control token {token!r}", do="Remove it from the row")


def _refuse_swallowed(conversation: Conversation, text: str) -> None:
    """A template that has no place for a message or for tools drops it without a word; then the row is not trained."""
    for message in conversation.messages:
        visible = message.content.rpartition("</think>")[2].strip()
        if visible and visible not in text:
            raise DataError("", f"the chat template leaves out the text of a {message.role} turn", do="Remove the row")
        for call in message.tool_calls:
            if str(call.get("function", {}).get("name")) not in text:
                raise DataError("", "the chat template leaves out tool calls", do="Use a model with tool calls")
    for tool in conversation.tools:
        if str(tool.get("function", {}).get("name")) not in text:
            raise DataError("", "the chat template has no place for tools", do="Use a model with tool calls")


def _trained_spans(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, text: str) -> list[tuple[int, int]]:
    """Character ranges of the trained turns in `text`, each up to the end of its turn-ending token."""
    messages, spans, after = conversation.messages, [], 0
    for number, message in enumerate(messages):
        if message.role != "assistant":
            continue
        start, limit = _turn(conversation, tokenizer, text, number, after)
        end = _end_of_turn(text, start, limit, message, _special(tokenizer))
        after = end
        if message.trained:
            spans.append((start, end))
    return spans


def _turn(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, text: str, number: int, after: int
) -> tuple[int, int]:
    """Where turn `number` starts in `text`, and where it ends at the latest.

    Usually the text up to the turn, with the generation prompt, is a prefix of the whole. Templates that rewrite
    earlier turns (Qwen3 takes thinking out of them) break that; then the turn is found by its content.
    """
    messages, tools = conversation.messages, conversation.tools
    if number:
        before = render_text(tokenizer, messages[:number], tools=tools, generation_prompt=True)
        through = render_text(tokenizer, messages[: number + 1], tools=tools)
        if text.startswith(before) and text.startswith(through):
            return len(before), len(through)
    content = messages[number].content.rpartition("</think>")[2].strip()
    place = text.find(content, after) if content else -1
    if place < 0:
        raise DataError("", f"turn {number + 1} cannot be found in the rendered text", do="Remove the row")
    return place, len(text)


def _end_of_turn(text: str, start: int, limit: int, message: Message, special: Sequence[str]) -> int:
    """The place behind the first special token after the turn's content; `limit` where the template has none."""
    content = message.content.rpartition("</think>")[2].strip()
    behind = text.find(content, start, limit) + len(content) if content and not message.tool_calls else start
    if message.tool_calls:  # tool-call marks are special tokens too: the one that ends the turn is the last
        ends = [place + len(token) for token in special if (place := text.rfind(token, behind, limit)) >= 0]
        return max(ends, default=limit)
    ends = [(place, place + len(token)) for token in special if (place := text.find(token, behind, limit)) >= 0]
    return min(ends)[1] if ends else limit


def _token_at(
    tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int], offsets: Sequence[tuple[int, int]], place: int
) -> int:
    """The number of tokens before a place in the text. Exact where the text up to there has the same tokens alone."""
    alone = token_ids(tokenizer, text[:place])
    if ids[: len(alone)] == alone:
        return len(alone)
    return next((number for number, (start, _) in enumerate(offsets) if start >= place), len(ids))


def _ends_turn(tokenizer: PreTrainedTokenizerBase, ids: list[int], trained: list[bool]) -> int | None:
    """The position of the last trained token when it is a special token (the end of the turn), else None."""
    last = max((number for number, flag in enumerate(trained) if flag), default=None)
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return last if last is not None and ids[last] in special else None
