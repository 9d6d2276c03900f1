"""Supervised fine-tuning: the mean cross entropy of the trained tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tunesmith.core.config import Config
from tunesmith.core.examples import IGNORED, Kind

if TYPE_CHECKING:
    import torch


class Sft(Config):
    """Learn to say the assistant turns."""

    kind: Literal["sft"] = "sft"
    """Supervised fine-tuning on the assistant turns."""

    ROWS: ClassVar[Kind] = "conversation"
    NATS_A_TOKEN: ClassVar[bool] = True
    uses_reference: ClassVar[bool] = False

    def count(self, batch: dict[str, torch.Tensor]) -> int:
        """The trained tokens of a batch."""
        return int((batch["labels"] != IGNORED).sum())

    def loss(self, model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        """The losses of the trained tokens added up, in nats; no other numbers."""
        from tunesmith.models.head import label_losses

        return label_losses(model, batch).sum(), {}
