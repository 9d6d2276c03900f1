"""What happened to every row: kept, truncated or dropped, and why. Counts add up to the rows read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tunesmith.core.errors import DataError

Outcome = Literal["kept", "truncated", "dropped"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One row's line in ledger.jsonl; token counts are those of the rendered row, of both answers where it has two."""

    source: str
    outcome: Outcome
    reason: str = ""
    split: Literal["train", "held_out", ""] = ""
    tokens: int = 0
    trained_tokens: int = 0
    lost_tokens: int = 0
    lost_from: Literal["end", ""] = ""
    lost_trained_tokens: int = 0
    end_trained: bool = False
    longest: int = 0
    """Tokens of its longest sequence."""

    def as_dict(self) -> dict[str, Any]:
        """The entry as it stands in ledger.jsonl."""
        return asdict(self)


def totals(entries: Sequence[Entry]) -> dict[str, Any]:
    """Counts over a ledger."""
    outcomes = Counter(entry.outcome for entry in entries)
    kept = [entry for entry in entries if entry.outcome != "dropped"]
    return {
        "rows": len(entries),
        "kept": outcomes["kept"],
        "truncated": outcomes["truncated"],
        "dropped": outcomes["dropped"],
        "reasons": dict(Counter(entry.reason for entry in entries if entry.outcome == "dropped").most_common()),
        "tokens": sum(entry.tokens for entry in kept),
        "trained_tokens": sum(entry.trained_tokens for entry in kept),
        "longest": max((entry.longest for entry in kept), default=0),
        "end_token_lost": sum(not entry.end_trained for entry in kept),
    }


def check(entries: Sequence[Entry], max_lost: float) -> None:
    """Raise DataError when nothing is left to train on, every end was cut off, or too large a share was lost."""
    lost = [entry for entry in entries if entry.outcome != "kept"]
    left = [entry for entry in entries if entry.outcome != "dropped"]
    if not left:
        first = lost[0]
        rest = f" and so for all {len(lost)} rows" if len(lost) > 1 else ""
        raise DataError(first.source, f"{first.reason.rstrip('.')}{rest}; nothing is left to train on")
    if all(entry.outcome == "truncated" for entry in left):
        raise DataError(
            "cutoff", "every row is longer than the cutoff, so no answer would be learned to its end",
            got=f"rows of {min(e.tokens + e.lost_tokens for e in left)} tokens and more", do="Raise the cutoff",
        )  # fmt: skip
    share = len(lost) / len(entries)
    if share > max_lost:
        reasons = Counter(entry.reason for entry in lost).most_common(3)
        said = "; ".join(f"{count} x {reason.rstrip('.')}" for reason, count in reasons)
        raise DataError(
            "dataset.max_lost", f"{len(lost)} of {len(entries)} rows ({share:.1%}) would be lost: {said}",
            got=f"{max_lost:g} allowed", do="Mend the rows, raise the cutoff, or allow more",
        )  # fmt: skip
