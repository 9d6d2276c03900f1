"""Supervised fine-tuning: the mean cross entropy of the trained tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from tunesmith.core.config import Config
from tunesmith.core.examples import IGNORED, Kind

if TYPE_CHECKING:
    import torch


class Sft(Config):
    """Learn to say the assistant turns."""

    kind: Literal["sft"] = "sft"
    """Supervised fine-tuning on the assistant turns."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target that is spread over the whole vocabulary while training (arXiv 1512.00567). Costs nothing;
    held-out losses stay plain cross entropy."""
    neftune_alpha: Annotated[float, Field(gt=0)] | None = None
    """NEFTune (arXiv 2310.05914): uniform noise of at most alpha / sqrt(tokens of the row * width) on the embeddings while
    training; 5 to 15 in the paper. A beginning that rows share is then computed for each row."""

    ROWS: ClassVar[tuple[Kind, ...]] = ("conversation",)
    NATS_A_TOKEN: ClassVar[bool] = True
    uses_reference: ClassVar[bool] = False

    def count(self, batch: dict[str, torch.Tensor]) -> int:
        """The trained tokens of a batch."""
        return int((batch["labels"] != IGNORED).sum())

    def loss(self, model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        """The losses of the trained tokens added up, in nats; no other numbers."""
        from tunesmith.models.head import label_losses

        if not model.training:
            return label_losses(model, batch).sum(), {}
        losses = label_losses(model, batch, smoothing=self.label_smoothing, noise=self.neftune_alpha)
        return losses.sum(), {}
