"""Supervised fine-tuning: the mean cross entropy of the trained tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from tunesmith.core.config import Config

if TYPE_CHECKING:
    import torch


class Sft(Config):
    """Learn to say the assistant turns."""

    kind: Literal["sft"] = "sft"
    """Supervised fine-tuning on the assistant turns."""

    def losses(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Losses of the trained tokens, (B, K) fp32, 0 where there is none; the caller divides by the count."""
        from tunesmith.models.head import label_losses

        return label_losses(model, batch)
