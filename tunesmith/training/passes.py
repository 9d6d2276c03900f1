"""How many tokens go through the model at a time. Decided once for a run, and in the same way for its plan."""

from __future__ import annotations

from typing import Any

from tunesmith.core.errors import UsageError
from tunesmith.data.batch import BatchConfig

CPU_TOKENS = 1536
"""More at a time are hardly faster on a CPU, and need more memory (decision 008)."""
WHOLE = {"kto", "ppo", "grpo"}
"""Objectives that read the rows of a batch together, or draw rows of their own."""


def batch_of(config: Any, device: str, each: int = 1) -> BatchConfig:
    """The batch of a train's or plan's config with `tokens` decided; rows are of `each` sequences, of which the longest counts.

    Raises UsageError where a limit is asked for that the objective cannot keep.
    """
    batch, kind = config.batch, config.objective.kind
    if kind in WHOLE and isinstance(batch.tokens, int):
        what = f"objective {kind} reads the rows of a batch together"
        raise UsageError("batch.tokens", what, got=batch.tokens, do="Leave it out, and choose batch.rows")
    limit = (CPU_TOKENS if device == "cpu" else None) if batch.tokens == "auto" else batch.tokens
    limit = None if kind in WHOLE or limit is None else max(1, limit // each)
    return batch.model_copy(update={"tokens": limit})
