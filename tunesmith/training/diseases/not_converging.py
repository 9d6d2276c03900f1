"""The weights move, and the loss stays where it was."""

from __future__ import annotations

from tunesmith.training.diseases import learning_rate_too_low
from tunesmith.training.record import Finding, Record

FOLLOWS = ("nothing_trained", "diverging", "learning_rate_too_high", "learning_rate_too_low")
IMPROVED = 0.02
"""Share of the loss won. The same rows are scored each time, so a fiftieth is no chance; healthy
runs win a tenth and more."""
lacks = learning_rate_too_low.lacks


def find(record: Record) -> Finding | None:
    """No progress after a way that would have been long enough."""
    improved, path, first = record.improved, record.path, record.trained[0][1]
    if improved >= IMPROVED or path < learning_rate_too_low.PATH or first < learning_rate_too_low.LEARNED:
        return None
    return Finding(
        "not_converging", 0,
        f"after {record.step} steps the loss on training rows is {record.trained[-1][1]:.3g}, it was {first:.3g} untrained",
        {"untrained": first, "last": record.trained[-1][1], "improved": improved, "path": path},
        "The rows may contradict each other or have nothing in common with their questions: read some with "
        "tunesmith prepare --show 10; if they are right, give the method more room (--method.rank 64, or --method.kind full).",
    )  # fmt: skip
