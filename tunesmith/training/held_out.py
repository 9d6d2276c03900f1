"""Held-out loss: mean cross entropy per trained token over all held-out rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tunesmith.core.config import Config
from tunesmith.core.examples import IGNORED
from tunesmith.data.batch import collate

if TYPE_CHECKING:
    import torch

    from tunesmith.data.dataset import Rows


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


def held_out_loss(
    losses: Callable[[Any, dict[str, torch.Tensor]], torch.Tensor],
    model: Any,
    rows: Rows,
    *,
    rows_at_once: int,
    pad_token: int,
    device: Any = "cpu",
) -> float:
    """Mean loss in nats per trained token; rows of like length are scored together."""
    import torch

    order = sorted(range(len(rows)), key=lambda number: rows.lengths[number])
    total, count = 0.0, 0
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for start in range(0, len(order), rows_at_once):
            batch = collate(rows, order[start : start + rows_at_once], pad_token)
            count += int((batch["labels"] != IGNORED).sum())
            total += losses(model, {name: value.to(device) for name, value in batch.items()}).double().sum().item()
    model.train(was_training)
    return total / max(count, 1)
