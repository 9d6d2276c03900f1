"""Sample answers go round in circles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunesmith.training.record import Finding, Record

FOLLOWS = (
    "nothing_trained",
    "diverging",
    "learning_rate_too_high",
    "learning_rate_too_low",
    "not_converging",
    "end_token_never_learned",
    "collapse",
)
REPEATED = 0.5
"""Share of an answer's 4-grams that came before in it, from which on it goes round in circles. Prose of this length has less
than a tenth, tables and code up to a third."""
MOST = 0.5
"""Share of the sample answers that do; one of four does now and then in healthy runs."""
SILENT = ("pretrain", "reward")
"""Objectives whose rows hold no answers, or whose model gives none."""
STEPS = 20
"""Fewer are a trial: they leave a model in the middle of learning."""
PROBES = 2
"""Evaluations in a row that agree."""
LEARNED = 0.25
"""Share of the loss won: a model that has learned less may loop because it knows nothing yet."""


def lacks(record: Record) -> str:
    """What is missing to judge; empty where it can be judged."""
    if record.facts.get("objective") in SILENT:
        return "this objective trains no answers"
    if not any(probe.get("samples") for probe in record.probes):
        return record.facts.get("silent") or "no sample answers were asked for (--diagnosis.samples)"
    return "" if len(asked(record)) >= PROBES else f"fewer than {PROBES} evaluations while training"


def asked(record: Record) -> list[dict[str, Any]]:
    """The probes with sample answers after the first step."""
    return [probe for probe in record.probes if probe.get("samples") and probe["step"]]


def looping(samples: Sequence[dict[str, Any]], name: str = "repetition") -> float:
    """Share of some answers, or of the rows' own answers to the same questions, that go round in circles."""
    return sum(sample[name] >= REPEATED for sample in samples) / len(samples)


def find(record: Record) -> Finding | None:
    """Judged once learning has settled; the cause is told from the rows' own answers."""
    probes = asked(record)
    shares = [(probe["step"], looping(probe["samples"])) for probe in probes]
    loops = [share >= MOST for _, share in shares]
    is_trial = record.step < STEPS
    if is_trial or not all(loops[-PROBES:]) or not record.is_settled or record.improved < LEARNED:
        return None
    began = next(step for place, (step, _) in enumerate(shares) if all(loops[place:]))
    samples = probes[-1]["samples"]
    own = looping(samples, "reference_repetition")
    worst = max(samples, key=lambda sample: sample["repetition"])["answer"]
    return Finding(
        "repetition", began,
        f"{shares[-1][1]:.0%} of the sample answers go round in circles, of the rows' own answers {own:.0%}",
        {"looping": shares[-1][1], "rows_looping": own, "example": worst[:120]},
        "The answers of the rows repeat themselves: remove such rows."
        if own >= MOST / 2
        else "Stop earlier (--optimizer.epochs 1) or take a lower --optimizer.learning_rate; look for rows that are there many "
        "times.",
    )  # fmt: skip
