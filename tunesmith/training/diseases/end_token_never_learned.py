"""The model learns what to say and not where to end."""

from __future__ import annotations

from tunesmith.training.diseases import repetition
from tunesmith.training.record import Finding, Record

FOLLOWS = ("nothing_trained", "diverging", "learning_rate_too_high", "learning_rate_too_low", "not_converging")
UNTRAINED = 0.5
"""Share of the rows whose end is not trained; from half of them on the model is told more often to go on than to end."""
HIGH_NATS = 1.0
"""Loss of the end token that is high: it is expected with a probability below 37 %. Healthy runs are below 0.1 by then,
because every row ends with the same token."""
FELL = 0.5
"""Share of its first loss that the end token has lost in a run that learns it, however slowly."""
LEARNED = 0.25
"""Share of the loss the rest must have won; in a model that has learned nothing yet the end is no exception."""


def lacks(record: Record) -> str:
    """What is missing to judge; empty where it can be judged."""
    if record.facts.get("objective") in repetition.SILENT:
        return "this objective trains no answers"
    return "" if record.facts.get("kept") or record.probes else "the run does not say what its rows train"


def find(record: Record) -> Finding | None:
    """What the ledger says first; then the end token's loss, then sample answers that do not end."""
    kept, lost = record.facts.get("kept") or 0, record.facts.get("end_token_lost") or 0
    if kept and lost / kept >= UNTRAINED:
        return Finding(
            "end_token_never_learned", 0, f"the token that ends the answer is not trained in {lost} of {kept} rows",
            {"rows": kept, "end_token_lost": lost},
            "Raise --cutoff where rows were cut; where none were, the model's chat template ends no turn with a special "
            "token, so take the chat version of the model.",
        )  # fmt: skip
    if not record.is_settled or record.improved < LEARNED:
        return None
    return _high(record) or _endless(record)


def _high(record: Record) -> Finding | None:
    losses = [probe["end_loss"] for probe in record.probes if probe.get("end_loss") is not None]
    if len(losses) < 2 or losses[-1] < HIGH_NATS or losses[-1] < (1 - FELL) * losses[0]:
        return None
    return Finding(
        "end_token_never_learned", 0,
        f"the loss of the token that ends the answer is {losses[-1]:.3g} (untrained {losses[0]:.3g}), while the loss as a whole "
        f"fell by {record.improved:.0%}", {"end_loss": losses[-1], "untrained": losses[0]}, _REMEDY,
    )  # fmt: skip


def _endless(record: Record) -> Finding | None:
    """No sample answer of the last two probes ends, though the references would have ended within half of the tokens."""
    last = [probe["samples"] for probe in record.probes if probe.get("samples")][-2:]
    short = [s for samples in last for s in samples if 2 * s["reference_tokens"] <= s["tokens"]]
    if len(last) < 2 or record.probes[-2]["step"] == 0 or any(s["ended"] for samples in last for s in samples):
        return None
    if len(short) < len(last[0]):
        return None
    return Finding(
        "end_token_never_learned", 0, f"none of {len(last[-1])} sample answers ends within {last[-1][0]['tokens']} tokens",
        {"samples": len(last[-1]), "ended": 0}, _REMEDY,
    )  # fmt: skip


_REMEDY = (
    "Look with tunesmith prepare --show 3 whether the last token of an answer is trained (green), and prepare again."
)
