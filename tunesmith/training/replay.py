"""Two loss series held against each other, step by step and bit by bit."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.core.errors import ProofError
from tunesmith.core.run import Run


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the losses of a replay stand to those of its run."""

    replay_of: str
    steps: int
    """Steps that both have."""
    same: bool
    """Every training loss and every held-out loss of the original, bit for bit."""
    first_step: int | None = None
    """The first step with another loss, or that the replay lacks."""
    first_difference: float | None = None
    largest_difference: float | None = None


def compare(original: Run, replay: Run) -> Comparison:
    """Hold the losses in the events of two runs against each other; an interrupted original counts as far as it came."""
    before, now = _losses(original), _losses(replay)
    both = [key for key in before if key in now]
    apart = {
        key: abs(now[key] - before[key])
        for key in both
        if now[key] != before[key] and None not in (now[key], before[key])
    }
    wrong = sorted(key for key in before if key not in now or now[key] != before[key])
    return Comparison(
        replay_of=str(original.folder), steps=sum(kind == "step" for _, kind in both), same=not wrong,
        first_step=wrong[0][0] if wrong else None, first_difference=apart.get(wrong[0]) if wrong else None,
        largest_difference=max(apart.values(), default=None),
    )  # fmt: skip


def _losses(run: Run) -> dict[tuple[int, str], Any]:
    """(step, step | evaluation) -> loss, or reward where answers are drawn; of a step that was repeated after a crash the last."""
    names = {"step": ("loss",), "evaluation": ("held_out_loss", "held_out_reward")}
    return {
        (event["step"], event["event"]): next((event[name] for name in names[event["event"]] if name in event), None)
        for event in run.events()
        if event["event"] in names
    }


def conclude(run: Run, folder: Path) -> dict[str, Any]:
    """Say whether `run` has the loss series of the run in `folder`; where not, the verb ends with a ProofError."""
    found = compare(Run("train", folder), run)
    if found.same:
        run.say(f"replay    the same loss series, bit for bit: {found.steps} steps of {folder}")
        return asdict(found)
    by = "one of the two has no number" if found.first_difference is None else f"apart by {found.first_difference:.3g}"
    most = "" if found.largest_difference is None else f", at most {found.largest_difference:.3g} later"
    run.unproven = ProofError(
        str(run.folder),
        f"is not the loss series of {folder}: step {found.first_step} is the first to differ, {by}{most}",
    )
    return asdict(found)
