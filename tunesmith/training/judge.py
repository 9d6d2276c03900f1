"""What follows from an evaluation: its event, its line, and whether it was the best one so far."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tunesmith.training.checkpoint import Position

if TYPE_CHECKING:
    from tunesmith.core.run import Run


def first_evaluation(run: Run, score: Callable[[], dict[str, float]] | None, *, resumed: bool) -> float | None:
    """The held-out loss before the first step; a resumed run has it in its events."""
    known = [decisive(e) for e in run.events() if e["event"] == "evaluation" and e["step"] == 0] if resumed else []
    if score is None or known:
        return known[0] if known else None
    scores = score()
    run.event("evaluation", step=0, **finite(scores))
    run.say(f"before training: {_in_words(scores)}")
    return _known(decisive(scores))


def judge(position: Position, scores: dict[str, float], run: Run) -> Position:
    """Write an evaluation down; the position knows it, and whether no earlier one was better."""
    known = _known(decisive(scores))
    position = replace(position, judged_step=position.step, held_out_loss=known)
    better = known is not None and (position.best_loss is None or known < position.best_loss)
    run.event("evaluation", step=position.step, **finite(scores), best=better)
    run.say(f"step {position.step}: {_in_words(scores)}{' (best)' if better else ''}")
    if better:
        return replace(position, best_loss=known, best_step=position.step, bad_evaluations=0)
    return replace(position, bad_evaluations=position.bad_evaluations + 1)


def decisive(scores: dict[str, Any]) -> Any:
    """The number by which evaluations are compared, the lower the better: the loss, or the reward turned round."""
    if "held_out_reward" not in scores:
        return scores["held_out_loss"]
    reward = scores["held_out_reward"]
    return None if reward is None else -reward  # what was no number stands in an event as null


def finite(numbers: dict[str, Any]) -> dict[str, Any]:
    """Numbers as JSON can hold them, and digests."""
    return {name: value if isinstance(value, str) else _known(value) for name, value in numbers.items()}


def _known(value: float) -> float | None:
    """A number, or None for what is none: so it stands in events, checkpoints and results."""
    return value if math.isfinite(value) else None


def _in_words(scores: dict[str, float]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ').replace('held out', 'held-out')} {value:.4f}" for name, value in scores.items()
    )
