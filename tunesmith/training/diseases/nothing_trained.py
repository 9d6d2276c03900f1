"""Nothing is trained: no labels, gradients that are zero, or weights that do not move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tunesmith.training.record import Finding, Record

FOLLOWS = ()
RESOLUTION = 6e-8
"""Sum of the relative updates: half the distance between two neighbouring fp32 numbers, so no weight is another one."""
STEPS = 3
"""Steps that must agree; a single one may hold rows without labels by chance."""


def lacks(record: Record) -> str:
    """What is missing to judge; empty where it can be judged."""
    known = record.facts.get("trained_tokens") is not None or len(record.steps) >= STEPS
    return "" if known else f"fewer than {STEPS} steps were taken"


def find(record: Record) -> Finding | None:
    """Masked rows are known before the first step, the rest after STEPS steps in a row from the first one on."""
    if record.facts.get("trained_tokens") == 0 or _all(record, lambda step: step.get("count", step["labels"]) == 0):
        return Finding(
            "nothing_trained", 0, "no token of the rows is trained", {"trained_tokens": 0},
            "Every label is masked: look at the rows with tunesmith prepare --show 3, and prepare them again.",
        )  # fmt: skip
    if _all(record, lambda step: step["gradient_norm"] == 0):
        return _finding(
            f"the gradient is exactly zero in all of {len(record.steps)} steps", {"gradient_norm": 0.0},
            "What is trained does not reach the loss: choose other --method.targets, or --method.kind lora.",
        )  # fmt: skip
    if _all(record, lambda step: step.get("update") is not None) and record.path < RESOLUTION:
        return _finding(
            f"the weights moved by {record.path:.1g} of their length in {len(record.steps)} steps", {"path": record.path},
            "The learning rate is lost in rounding: type --optimizer.learning_rate 2e-4 (LoRA) or 2e-5 (full).",
        )  # fmt: skip
    return None


def _finding(seen: str, numbers: dict[str, float], remedy: str) -> Finding:
    return Finding("nothing_trained", 1, seen, numbers, remedy)


def _all(record: Record, is_so: Callable[[dict[str, Any]], bool]) -> bool:
    return len(record.steps) >= STEPS and all(is_so(step) for step in record.steps)
