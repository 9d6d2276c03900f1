"""The model learns its rows by heart: they get better while held-out rows get worse."""

from __future__ import annotations

from tunesmith.training.record import Finding, Record

FOLLOWS = ("nothing_trained", "diverging", "learning_rate_too_high")
RISE_SHARE, RISE_NATS = 0.1, 0.05
"""By how much the held-out loss is above its best: a tenth, since small held-out sets wobble by some hundredths from one
evaluation to the next; and so many nats, since near zero a tenth is nothing."""
AFTER = 2
"""Evaluations after the best one that are all worse; one alone may be a wobble, healthy small runs jump by a third once,"""
SURE = 0.25
"""unless it is the last of the run and worse by a quarter."""
FALL = 0.05
"""Share by which the training rows' loss has fallen since the best evaluation; else nothing is learned by heart."""


def lacks(record: Record) -> str:
    """What is missing to judge; empty where it can be judged."""
    if not record.facts.get("held_out_rows", len(record.held_out)):
        return "no rows are held out"
    return "" if len(record.held_out) > 2 and len(record.trained) > 2 else "fewer than two evaluations while training"


def find(record: Record) -> Finding | None:
    """The best evaluation is where it began."""
    held, trained = record.held_out, dict(record.trained)
    best, lowest = min(held, key=lambda pair: pair[1])
    later = [loss for step, loss in held if step > best]
    if not later or later[-1] < lowest + max(RISE_NATS, RISE_SHARE * lowest):
        return None
    if len(later) < AFTER and not (record.is_finished and later[-1] >= (1 + SURE) * lowest):
        return None
    then, now = trained.get(best), record.trained[-1][1]
    if then is None or now > (1 - FALL) * then:
        return None
    rows, passes = record.facts.get("rows"), best / record.facts.get("steps_per_epoch", best or 1)
    return Finding(
        "overfitting", best,
        f"the held-out loss rose from {lowest:.3g} to {later[-1]:.3g} since step {best}, on training rows it fell from "
        f"{then:.3g} to {now:.3g}",
        {"held_out_best": lowest, "held_out_last": later[-1], "trained_then": then, "trained_now": now, "rows": rows},
        f"Stop there: --optimizer.epochs {max(passes, 0.1):.1g} or --evaluation.patience 2 (the best checkpoint is kept); "
        "more rows are the cure.",
    )  # fmt: skip
