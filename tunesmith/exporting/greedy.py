"""Greedy answers of safetensors models with their logits: recorded from one model, compared with another's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.models.virtual import leading_logits, opened

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import torch
    from transformers import PreTrainedTokenizerBase

_CHOICES = 64  # how far down a model's choices the token is looked for that another runtime took
_HALF = "\ufffd"  # what a decoder writes for bytes that are no whole character


@dataclass(frozen=True, slots=True)
class Recorded:
    """A greedy answer, and the logits from which each of its tokens was chosen."""

    prompt_ids: list[int]
    answer_ids: list[int]
    """With the end token where one was reached."""
    logits: torch.Tensor
    """(tokens of the answer, vocabulary), fp32."""


@dataclass(frozen=True, slots=True)
class Compared:
    """How another model would have answered, given the recorded answer so far."""

    largest: float
    """Largest absolute difference of two logits."""
    divergence: float
    """Sum of KL(recorded || other) over the answer's tokens, in nats."""
    tokens: int
    differs_at: int | None
    """The first token of the answer that the other model would choose differently; None where the answers are equal."""
    ties: int
    """Tokens where both models see two candidates closer than `tie` and take different ones."""


@dataclass(frozen=True, slots=True)
class Parting:
    """Where a text leaves a recorded answer."""

    token: int | None
    """The first token of the answer that is not in the text; None where only the length limit cut one of them off."""
    lead_nats: float
    """By how much the recorded model preferred its own token there; 0 where nothing but the limit differs."""
    merged: str
    gguf: str


def greedy(model: Any, prompt_ids: Sequence[int], ends: Collection[int], limit: int) -> list[int]:
    """The most likely tokens one after another, until an end token or `limit` tokens."""
    import torch

    answer: list[int] = []
    fed = opened(model)
    ids, cache = torch.tensor([list(prompt_ids)], device=model.device), fed.cache() if fed.tokens else None
    with torch.inference_mode():
        while len(answer) < limit and not (answer and answer[-1] in ends):
            out = fed.model(input_ids=ids, past_key_values=cache, use_cache=True)
            answer.append(int(out.logits[0, -1].argmax()))
            ids, cache = torch.tensor([answer[-1:]], device=model.device), out.past_key_values
    return answer


def record(model: Any, prompt_ids: Sequence[int], ends: Collection[int], limit: int) -> Recorded:
    """Answer a prompt greedily and keep the logits of one pass over prompt and answer."""
    answer = greedy(model, prompt_ids, ends, limit)
    return Recorded(list(prompt_ids), answer, _logits(model, prompt_ids, answer))


def compare(model: Any, recorded: Recorded, tie: float) -> Compared:
    """Show another model the recorded prompt and answer, and compare what it would choose at every token."""
    import torch

    theirs, ours = recorded.logits, _logits(model, recorded.prompt_ids, recorded.answer_ids)
    log_p, log_q = theirs.double().log_softmax(-1), ours.double().log_softmax(-1)  # (T, V)
    choice, other = torch.tensor(recorded.answer_ids), ours.argmax(-1)  # (T,)
    rows = torch.arange(len(choice))
    lead = theirs[rows, choice] - theirs[rows, other]
    changed = (other != choice) & (lead > tie)
    return Compared(
        largest=float((theirs - ours).abs().max()),
        divergence=float((log_p.exp() * (log_p - log_q)).sum()),
        tokens=len(choice),
        differs_at=int(changed.nonzero()[0]) if changed.any() else None,
        ties=int(((other != choice) & (lead <= tie)).sum()),
    )


def unlike(recorded: Recorded, text: str, finish: str, tokenizer: PreTrainedTokenizerBase) -> Parting | None:
    """Where a text that another runtime wrote leaves the recorded answer; None where it is the same.

    Texts are compared, not tokens: a model may write a text in other tokens than the tokenizer would.
    `finish` is `stop`, or `length` where the text was cut off.
    """
    ours, theirs = _text(tokenizer, recorded.answer_ids), text.lstrip()
    if ours.rstrip() == theirs.rstrip():
        return None
    place = _leaves(recorded.answer_ids, theirs, finish, tokenizer)
    lead = 0.0 if place is None else _lead(recorded, place, theirs, finish, tokenizer)
    return Parting(place, round(lead, 4), ours, theirs)


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Text of some tokens; a character whose bytes are not all there yet is left out."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True)).rstrip(_HALF).lstrip()


def _leaves(ids: list[int], theirs: str, finish: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
    wrong = next((n for n in range(len(ids)) if not theirs.startswith(_text(tokenizer, ids[: n + 1]))), None)
    if wrong is None:  # all of the answer is in the text, which goes on behind it
        return len(ids) - 1 if ids[-1] in tokenizer.all_special_ids else None
    if finish == "length" and _text(tokenizer, ids[: wrong + 1]).startswith(theirs):
        return None
    while wrong and str(tokenizer.decode(ids[:wrong])).endswith(_HALF):
        wrong -= 1  # back to the first byte of the character
    return wrong


def _lead(recorded: Recorded, place: int, theirs: str, finish: str, tokenizer: PreTrainedTokenizerBase) -> float:
    """Logit of the recorded token over the best other one that leads to the text (at most the _CHOICES best are tried)."""
    logits, own, before = recorded.logits[place], recorded.answer_ids[place], recorded.answer_ids[:place]
    start = _text(tokenizer, before)
    ended = finish == "stop" and start.rstrip() == theirs.rstrip()
    may_be_half = not theirs[len(start) :][:1].isascii()
    best = logits.topk(min(_CHOICES, len(logits)))
    for token, logit in zip(best.indices.tolist(), best.values.tolist(), strict=True):
        text, is_end = _text(tokenizer, [*before, token]), token in tokenizer.all_special_ids
        leads_there = is_end if ended else not is_end and theirs.startswith(text) and (text != start or may_be_half)
        if token != own and leads_there:
            return float(logits[own]) - logit
    return float(logits[own] - best.values[-1])


def _logits(model: Any, prompt_ids: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
    import torch

    ids = torch.tensor([[*prompt_ids, *answer]], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0, leading_logits(model) :]  # (T, V)
    return logits[len(prompt_ids) - 1 : -1].float().cpu().clone()  # a slice would keep the whole in memory
