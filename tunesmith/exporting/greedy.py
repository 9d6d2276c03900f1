"""Greedy answers of safetensors models with their logits: recorded from one model, compared with another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import torch


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


def greedy(model: Any, prompt_ids: Sequence[int], ends: Collection[int], limit: int) -> list[int]:
    """The most likely tokens one after another, until an end token or `limit` tokens."""
    import torch

    answer: list[int] = []
    ids, cache = torch.tensor([list(prompt_ids)], device=model.device), None
    with torch.inference_mode():
        while len(answer) < limit and not (answer and answer[-1] in ends):
            out = model(input_ids=ids, past_key_values=cache, use_cache=True)
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


def _logits(model: Any, prompt_ids: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
    import torch

    ids = torch.tensor([[*prompt_ids, *answer]], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0]  # (T, V)
    return logits[len(prompt_ids) - 1 : -1].float().cpu().clone()  # a slice would keep the whole in memory
