"""KTO: answers that were found good or bad, without pairs (Ethayarajh et al. 2024, arXiv 2402.01306)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from tunesmith.core.config import Config
from tunesmith.core.examples import Kind

if TYPE_CHECKING:
    import torch


class Kto(Config):
    """Make good answers likelier and bad ones less likely than they are on the whole."""

    kind: Literal["kto"] = "kto"
    """Optimisation on answers that were found good or bad."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """How strongly answers are held to the reference."""
    good_weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of good answers; the paper keeps good_weight x good rows to bad_weight x bad rows between 1 and 4/3."""
    bad_weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of bad answers."""

    ROWS: ClassVar[tuple[Kind, ...]] = ("feedback",)
    NATS_A_TOKEN: ClassVar[bool] = False
    uses_reference: ClassVar[bool] = True

    def count(self, batch: dict[str, torch.Tensor]) -> int:
        """The rows of a batch."""
        return len(batch["good"])

    def loss(self, model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        """The losses of all rows added up; the divergence, rewards of good and bad rows and accuracy, added up too.

        `batch` has the rows in its first half and prompts with another row's answer in its second, from which the
        divergence from the reference is estimated (section 4.2: at least 0, without gradient); `reference` (2 B,).
        """
        import torch

        from tunesmith.models.head import label_losses

        own, other = (
            {name: value.chunk(2)[half] for name, value in batch.items() if name != "good"} for half in (0, 1)
        )
        with torch.no_grad():
            divergence = (-label_losses(model, other).sum(dim=1) - other["reference"]).mean().clamp(min=0)
        ratio = -label_losses(model, own).sum(dim=1) - own["reference"]  # (B,)
        sign = torch.where(batch["good"], 1.0, -1.0)
        weight = torch.where(batch["good"], self.good_weight, self.bad_weight)
        losses = weight * (1 - torch.sigmoid(self.beta * sign * (ratio - divergence)))
        with torch.no_grad():
            lead = sign * (ratio - divergence)
            seen = {
                "divergence": divergence * len(ratio),
                "accuracy": (lead > 0).float().sum(),
                "margin": self.beta * lead.sum(),
            }
        return losses.sum(), {name: float(value) for name, value in seen.items()}
