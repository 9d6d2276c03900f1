"""Held-out scores: the loss of the objective, and its other numbers, over all held-out rows."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tunesmith.core.config import Config
from tunesmith.data.batch import collate

if TYPE_CHECKING:
    from tunesmith.data.dataset import Few, Rows
    from tunesmith.training.objectives import Objective


class EvaluationConfig(Config):
    """When the held-out rows are scored, and what follows from it."""

    share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the rows held out where the dataset is not prepared yet."""
    every_steps: Annotated[int, Field(ge=1)] = 50
    """Optimizer steps between two evaluations; the first and the last step are always followed by one."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many evaluations without a better held-out loss; null never stops early."""
    keep_best: bool = True
    """Use the checkpoint with the lowest held-out loss; false uses the last one."""


def held_out_scores(
    objective: Objective, model: Any, rows: Rows | Few, *, rows_at_once: int, pad_token: int, device: Any = "cpu"
) -> dict[str, float]:
    """`held_out_loss` and the objective's other numbers (`held_out_...`), means over all that it counts in the rows.

    Rows of like length are scored together.
    """
    import torch

    order = sorted(range(len(rows)), key=lambda number: rows.lengths[number])
    sums, count = Counter[str](), 0
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for start in range(0, len(order), rows_at_once):
            batch = collate(rows, order[start : start + rows_at_once], pad_token)
            count += objective.count(batch)
            loss, seen = objective.loss(model, {name: value.to(device) for name, value in batch.items()})
            sums.update({"loss": loss.item(), **seen})
    model.train(was_training)
    return {f"held_out_{name}": value / max(count, 1) for name, value in sums.items()}
