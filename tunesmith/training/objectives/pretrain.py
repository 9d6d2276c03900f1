"""Continued pre-training on plain text: the mean cross entropy of every token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tunesmith.core.config import Config
from tunesmith.core.examples import Kind
from tunesmith.training.objectives.sft import Sft

if TYPE_CHECKING:
    import torch


class Pretrain(Config):
    """Learn to continue plain text; documents are laid end to end and cut at the cutoff."""

    kind: Literal["pretrain"] = "pretrain"
    """Continued pre-training on plain text."""

    ROWS: ClassVar[tuple[Kind, ...]] = ("text",)
    NATS_A_TOKEN: ClassVar[bool] = True
    uses_reference: ClassVar[bool] = False
    count = Sft.count

    def loss(self, model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        """The losses of all tokens added up, in nats; no other numbers."""
        from tunesmith.models.head import label_losses

        return label_losses(model, batch).sum(), {}
