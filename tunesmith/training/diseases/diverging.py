"""The loss climbs away, or is no number any more."""

from __future__ import annotations

from tunesmith.training.diseases import learning_rate_too_high
from tunesmith.training.record import Finding, Record, rate_remedy

FOLLOWS = ("nothing_trained",)


def lacks(record: Record) -> str:
    """What is missing to judge; empty where it can be judged."""
    return "" if record.steps else "no step was taken"


def find(record: Record) -> Finding | None:
    """A loss that is no number; or trained rows worse than before training, and still getting worse."""
    broken = next((step["step"] for step in record.steps if step["loss"] is None and step.get("count", 1)), None)
    if broken is not None:
        before = [step["loss"] for step in record.steps if step["step"] < broken and step["loss"] is not None]
        return Finding(
            "diverging", broken, f"the loss is no number at step {broken}" + (f", after {before[-1]:.3g}" if before else ""),
            {"last_loss": before[-1] if before else None},
            rate_remedy(record, 0.1, "weights that are no numbers do not come back, so start anew or go back to a checkpoint "
            f"before step {broken}; if it happens again, look at the rows of that step"),
        )  # fmt: skip
    if learning_rate_too_high.lacks(record) or learning_rate_too_high.find(record):
        return None
    return _climbs(record)


def _climbs(record: Record) -> Finding | None:
    series = record.trained
    if len(series) < 3 or not series[-1][1] >= series[-2][1] > series[0][1]:
        return None
    (_, first), (_, last) = series[0], series[-1]
    if last < first + learning_rate_too_high.margin(first):
        return None
    lowest = min(range(len(series)), key=lambda place: series[place][1])
    return Finding(
        "diverging", series[lowest][0], f"the loss on training rows climbs from {series[lowest][1]:.3g} to {last:.3g}",
        {"untrained": first, "lowest": series[lowest][1], "last": last},
        rate_remedy(record, 0.1, "and look whether the objective and the data say what you mean, because small steps lead up"),
    )  # fmt: skip
