"""Gradients that grow by orders of magnitude, or are no numbers while the loss still is one."""

from __future__ import annotations

from statistics import median

from tunesmith.training.record import Finding, Record

FOLLOWS = ("nothing_trained",)
GROWTH = 20
"""Times the norm of the run's beginning. Adapters start at zero and grow into gradients a few times as long; single batches
reach ten times the median in healthy runs."""
LENGTH = 10
"""The least norm that counts: ten times the usual clipping length of 1, so that nine tenths of a step are cut off."""
WINDOW = 5
"""Steps whose median is taken, at the beginning and at the end: single spikes are what clipping is for."""


def lacks(record: Record) -> str:
    """What is missing to judge; empty where it can be judged."""
    return "" if len(record.steps) >= 3 * WINDOW or _broken(record) else f"fewer than {3 * WINDOW} steps were taken"


def find(record: Record) -> Finding | None:
    """A norm that is no number under a loss that is one; else WINDOW steps far above the first ones."""
    broken = _broken(record)
    if broken:
        return _finding(broken, f"the gradient is no number at step {broken}, the loss still is one", None, None)
    norms = [(step["step"], step["gradient_norm"]) for step in record.steps if step["gradient_norm"] is not None]
    if len(norms) < 3 * WINDOW:
        return None
    first = median(norm for _, norm in norms[:WINDOW])
    for place in range(2 * WINDOW, len(norms) - WINDOW + 1):
        now, long = median(norm for _, norm in norms[place : place + WINDOW]), max(LENGTH, GROWTH * first)
        if now >= long:
            began = next(step for step, norm in norms[place:] if norm >= long)
            return _finding(began, f"the gradient norm grew from {first:.3g} to {now:.3g}", first, now)
    return None


def _broken(record: Record) -> int:
    return next((s["step"] for s in record.steps if s["gradient_norm"] is None and s["loss"] is not None), 0)


def _finding(step: int, said: str, first: float | None, now: float | None) -> Finding:
    return Finding(
        "exploding_gradients", step, said, {"first": first, "norm": now},
        "Clip with --optimizer.max_gradient_norm 1, warm up longer (--optimizer.warmup 0.1) and take precision fp32 where it "
        "was bf16.",
    )  # fmt: skip
