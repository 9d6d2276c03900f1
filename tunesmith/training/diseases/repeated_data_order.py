"""Two epochs show the rows in the very same order."""

from __future__ import annotations

import math

from tunesmith.training.record import Finding, Record

FOLLOWS = ("nothing_trained",)
CHANCE = 1e-4
"""Probability below which an equal order is no accident. Steps of an epoch can be put in (k - 1)! orders at least (the last
one may be smaller and then stays last), so nine steps are enough, or three equal epochs of six."""


def lacks(record: Record) -> str:
    """What is missing to judge; empty where it can be judged."""
    per_epoch = record.facts.get("steps_per_epoch")
    if not per_epoch or not all("order" in step for step in record.steps):
        return "the run does not say in which order it took the rows"
    return "" if record.step >= 2 * per_epoch else "fewer than two epochs were trained"


def find(record: Record) -> Finding | None:
    """Epochs are compared by the digests of their steps; the second of the first two equal ones is where it began."""
    size = record.facts["steps_per_epoch"]
    digests = {step["step"]: step["order"] for step in record.steps}
    epochs = [
        tuple(digests.get(epoch * size + place + 1) for place in range(size)) for epoch in range(record.step // size)
    ]
    repeated = [number for number, epoch in enumerate(epochs) if None not in epoch and epoch in epochs[:number]]
    if not repeated or math.lgamma(size) * len(repeated) < -math.log(CHANCE):  # lgamma(k) = log (k - 1)!
        return None
    first = epochs.index(epochs[repeated[0]])
    return Finding(
        "repeated_data_order", repeated[0] * size + 1,
        f"epoch {repeated[0] + 1} takes the rows in the order of epoch {first + 1}, step for step",
        {"epoch": repeated[0] + 1, "as_epoch": first + 1, "steps": size},
        "The order should depend on the epoch: if this run was resumed or the loop was changed, start it anew with another "
        "--seed and compare; else report it.",
    )  # fmt: skip
