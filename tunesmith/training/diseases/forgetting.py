"""The model loses what it knew before."""

from __future__ import annotations

import math

from tunesmith.training.record import Finding, Record

FOLLOWS = ("nothing_trained", "diverging", "learning_rate_too_high")
KNOWN = 0.25
"""A row is known where its loss is below this share of a blind guess's, the logarithm of the vocabulary's size."""
ROWS = 4
"""Known rows that are needed to judge."""
RISE_NATS = math.log(2)
"""Mean rise of the loss on known rows: their perplexity has doubled."""
MOST = 0.75
"""Share of the known rows that got worse; else a few rows make the mean."""


def lacks(record: Record) -> str:
    """What is missing to judge; empty where it can be judged."""
    if not record.probes or not record.probes[0].get("general"):
        return record.facts.get("silent") or "no general rows were scored (--diagnosis.general)"
    if record.probes[0]["step"] != 0:
        return "the untrained model was not scored"
    known = len(_known(record))
    return "" if known >= ROWS else f"the untrained model knows {known} of the general rows; {ROWS} are needed"


def find(record: Record) -> Finding | None:
    """Judged once learning has settled, since the first large steps shake what comes back later (seen in healthy runs). The
    rise lasts for two evaluations, or is there at the end; it began with the first one from which on it lasts.
    """
    known = _known(record)
    rises = [
        (probe["step"], *_rise(record, probe["general"], known)) for probe in record.probes if probe.get("general")
    ]
    sick = [rise >= RISE_NATS and share >= MOST for _, rise, share in rises]
    if not sick[-1] or not record.is_settled or not (record.is_finished or all(sick[-2:])):
        return None
    began = next(step for place, (step, _, _) in enumerate(rises) if all(sick[place:]))
    before = sum(record.probes[0]["general"][row] for row in known) / len(known)
    return Finding(
        "forgetting", began, f"the loss on {len(known)} general rows rose from {before:.3g} to {before + rises[-1][1]:.3g}",
        {"untrained": before, "now": before + rises[-1][1], "rows": len(known)},
        "Mix rows of other kinds into the data (a third is usual), or change less: --method.kind lora, fewer "
        "--optimizer.epochs, a lower --optimizer.learning_rate.",
    )  # fmt: skip


def _known(record: Record) -> list[int]:
    limit = KNOWN * math.log(record.facts.get("vocabulary") or 2)
    return [row for row, loss in enumerate(record.probes[0]["general"]) if loss is not None and loss <= limit]


def _rise(record: Record, now: list[float | None], known: list[int]) -> tuple[float, float]:
    """(mean rise, share of rows that rose); a loss that is no number counts as a rise without end."""
    before = record.probes[0]["general"]
    rises = [(math.inf if now[row] is None else now[row]) - before[row] for row in known]
    return sum(rises) / len(rises), sum(rise > 0 for rise in rises) / len(rises)
