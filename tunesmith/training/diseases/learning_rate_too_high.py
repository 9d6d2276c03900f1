"""Steps so large that they destroy what the model knew."""

from __future__ import annotations

from statistics import median

from tunesmith.training.record import Finding, Record, rate_remedy

FOLLOWS = ("nothing_trained",)
RISE_NATS, RISE_SHARE = 0.25, 0.1
"""Rows that are trained get worse than the untrained model by so much: a quarter of a nat is a perplexity 28 % higher,
a tenth is for models that start at a loss of many nats. On always the same rows there is no noise of the draw."""
LOST = 0.5
"""Share of what had been gained that is lost again between two evaluations; healthy runs give back less than a tenth."""
LOST_NATS = 0.5
"""The least that counts as lost: near a loss of zero halves are small."""
UPDATE = 2e-3
"""Median update relative to the weights. Healthy runs of large models stay below a thousandth a step in full tuning; where
smaller steps lead up, their size is not the cause."""


def lacks(record: Record) -> str:
    """What is missing to judge; empty where it can be judged."""
    return "" if len(record.trained) > 1 else "the loss on training rows was measured less than twice"


def margin(untrained: float) -> float:
    """The rise over the untrained model's loss that is not chance."""
    return max(RISE_NATS, RISE_SHARE * untrained)


def find(record: Record) -> Finding | None:
    """The first evaluation by which large steps had made the training rows worse."""
    (_, first), *_ = series = record.trained
    for place in range(1, len(series)):
        step, loss = series[place]
        lowest = min(earlier for _, earlier in series[:place])
        lost = loss - lowest
        if loss < first + margin(first) and (lost < LOST_NATS or lost < LOST * (first - lowest)):
            continue
        sizes = [taken["update"] for taken in record.steps if taken["step"] <= step and taken.get("update") is not None]
        if sizes and median(sizes) < UPDATE:
            continue
        moved = f", while a step moved the weights by {median(sizes):.1%}" if sizes else ""
        return Finding(
            "learning_rate_too_high", series[place - 1][0],
            f"the loss on training rows went from {lowest:.3g} to {loss:.3g} by step {step}{moved}",
            {"untrained": first, "lowest": lowest, "after": loss, "update": median(sizes) if sizes else None},
            rate_remedy(record, 0.1, "a tenth, with --optimizer.warmup 0.1"),
        )  # fmt: skip
    return None
