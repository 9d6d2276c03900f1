"""Sample answers become poorer than those of the untrained model: loops, one answer to everything, or hardly a word."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from tunesmith.training.diseases import repetition
from tunesmith.training.record import Finding, Record

FOLLOWS = (
    "nothing_trained",
    "diverging",
    "learning_rate_too_high",
    "learning_rate_too_low",
    "not_converging",
    "end_token_never_learned",
)
SPEAKS = 0.25
"""Share of looping answers up to which the untrained model can be said to speak; else it has nothing to lose."""
MORE_LOOPS = 0.5
"""Rise of the share of answers that go round in circles, over the untrained model's and over the rows' own answers."""
SAME = 0.25
"""Different answers among the samples, as a share: one in four. The questions are chosen so that their answers differ;"""
DIFFERENT = 0.75
"""and the untrained model gave so many different ones."""
IMITATES = ("sft", "pretrain")
"""Objectives under which one answer to everything is the way into learning, not out of it: healthy small runs pass through
it, and their loss says better how far they are. Under rewards and preferences it is the usual end of a collapse."""
SHORT = 0.25
"""Length of the median answer relative to the untrained model's and to the rows' answers."""
SAMPLES = 4
"""Fewer samples are too few to speak of one answer to everything."""


def lacks(record: Record) -> str:
    """What is missing to judge; empty where it can be judged."""
    missing = repetition.lacks(record)
    if missing:
        return missing
    first = record.probes[0]
    if first["step"] or not first.get("samples"):
        return "the untrained model was not asked"
    loops = repetition.looping(first["samples"])
    return "" if loops <= SPEAKS else f"{loops:.0%} of the untrained model's own answers go round in circles"


def find(record: Record) -> Finding | None:
    """The same sign in the last two evaluations, once learning has settled."""
    probes, before = repetition.asked(record), record.probes[0]["samples"]
    if not record.is_settled:
        return None
    imitates = record.facts.get("objective", "sft") in IMITATES
    signs = [_signs(before, probe["samples"], imitates=imitates) for probe in probes]
    lasting = [name for name in signs[-1] if all(name in found for found in signs[-repetition.PROBES :])]
    if not lasting:
        return None
    name = lasting[0]
    began = next(probe["step"] for place, probe in enumerate(probes) if all(name in found for found in signs[place:]))
    said, numbers = signs[-1][name]
    example = probes[-1]["samples"][0]["answer"]
    return Finding(
        "collapse", began, said, {**numbers, "example": example[:120], "before": before[0]["answer"][:120]},
        f"Go back to the checkpoint before step {began}, take a lower --optimizer.learning_rate or fewer --optimizer.epochs, and "
        "mix in rows of other kinds.",
    )  # fmt: skip


def _signs(
    before: Sequence[dict[str, Any]], now: Sequence[dict[str, Any]], *, imitates: bool
) -> dict[str, tuple[str, dict[str, Any]]]:
    """The signs of collapse in some samples: name -> (in words, numbers)."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    loops, was = repetition.looping(now), repetition.looping(before)
    if loops >= max(was, repetition.looping(now, "reference_repetition")) + MORE_LOOPS:
        said = f"{loops:.0%} of the sample answers go round in circles, untrained {was:.0%}"
        found["loops"] = (said, {"looping": loops, "untrained": was})
    different, were = (len({sample["answer"] for sample in samples}) / len(samples) for samples in (now, before))
    if not imitates and len(now) >= SAMPLES and different <= SAME and were >= DIFFERENT:
        said = f"{len(now)} different questions get {round(different * len(now))} different answers"
        found["one answer"] = (said, {"different": different, "untrained": were})
    length, long, wanted = (
        median(sample[name] for sample in samples)
        for samples, name in ((now, "tokens"), (before, "tokens"), (now, "reference_tokens"))
    )
    if length <= SHORT * min(long, wanted):
        said = f"answers have {length:g} tokens, those of the rows {wanted:g}, untrained {long:g}"
        found["short"] = (said, {"tokens": length, "untrained": long, "reference": wanted})
    return found
