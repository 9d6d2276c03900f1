"""Every row is seen so often that seeing it again teaches nothing but the row itself."""

from __future__ import annotations

from tunesmith.training.record import Finding, Record

FOLLOWS = ("nothing_trained",)
DRAWN = ("ppo", "grpo")
"""Objectives that learn from answers of their own, other ones each time."""
PASSES = 16
"""Epochs. Repeated data is worth less with every pass and next to nothing after about fifteen repetitions
(Muennighoff et al. 2023, arXiv 2305.16264: the half-life R_D* of repeated data is 15.4)."""


def lacks(record: Record) -> str:
    """What is missing to judge; empty where it can be judged."""
    if record.facts.get("objective") in DRAWN:
        return "the answers are drawn anew each time"
    return "" if record.facts.get("steps_per_epoch") else "the run does not say how many steps an epoch has"


def find(record: Record) -> Finding | None:
    """Known before the first step."""
    rows = record.facts.get("rows")
    passes = record.facts["steps"] / record.facts["steps_per_epoch"]
    if passes <= PASSES:
        return None
    return Finding(
        "too_few_rows", 0, f"each of {rows} rows is seen {passes:.0f} times", {"rows": rows, "epochs": round(passes, 2)},
        f"Take --optimizer.epochs 4, or at least {round(rows * passes / PASSES) if rows else 'more'} rows for so many steps.",
    )  # fmt: skip
