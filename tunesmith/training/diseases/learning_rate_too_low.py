"""Steps so small that nothing is learned in the time there is."""

from __future__ import annotations

from tunesmith.training.record import HALF, Finding, Record, rate_remedy

FOLLOWS = ("nothing_trained", "diverging", "learning_rate_too_high")
STEPS = 20
"""Fewer steps are a trial, not a training."""
IMPROVED = 0.03
"""Share of the loss won. A rate that is a thousand times too low wins less than a hundredth; healthy runs have a twentieth by
half of their steps even where the model knew most of it."""
PATH = 0.05
"""Sum of the relative updates. Healthy runs that win little still go further than a twentieth of the weights' length."""
LEARNED = 0.2
"""Nats, a perplexity of 1.2; below it there is hardly anything left to learn, whatever the rate."""


def lacks(record: Record) -> str:
    """What is missing to judge; empty where it can be judged."""
    if record.step < STEPS or record.share_done < HALF:
        return f"fewer than {STEPS} steps, or less than half of the run"
    if all(step.get("update") is None for step in record.steps):
        return record.facts.get("silent") or "how far the weights moved was not measured"
    return "" if len(record.trained) > 1 else "the loss on training rows was measured less than twice"


def find(record: Record) -> Finding | None:
    """Hardly any progress, and hardly any way gone."""
    improved, path, first = record.improved, record.path, record.trained[0][1]
    if improved >= IMPROVED or path >= PATH or first < LEARNED:
        return None
    return Finding(
        "learning_rate_too_low", 0, f"{record.step} steps moved the weights by {path:.2%} in all and won {improved:.1%} of the loss",
        {"path": path, "improved": improved, "untrained": first},
        rate_remedy(record, 10, "ten times as much, and again as long as the loss hardly falls"),
    )  # fmt: skip
