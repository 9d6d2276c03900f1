"""A reward model: a number for every answer, so that the better one of two has more (Bradley and Terry 1952)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from tunesmith.core.config import Config
from tunesmith.core.examples import Kind

if TYPE_CHECKING:
    import torch


class Reward(Config):
    """Learn to score answers from pairs of which one is better; PPO and GRPO can take the result."""

    kind: Literal["reward"] = "reward"
    """A reward model from pairs of answers."""
    centre: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the squared sum of a pair's scores, which keeps scores around zero (arXiv 2312.09244); TRL's
    documentation takes 0.01."""

    ROWS: ClassVar[tuple[Kind, ...]] = ("preference",)
    NATS_A_TOKEN: ClassVar[bool] = False
    uses_reference: ClassVar[bool] = False

    def count(self, batch: dict[str, torch.Tensor]) -> int:
        """The pairs of a batch."""
        return len(batch["input_ids"]) // 2

    def loss(self, model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        """-log sigmoid(better - other) of all pairs added up; accuracy and margin, added up too."""
        from torch.nn.functional import logsigmoid

        from tunesmith.models.scoring import scores

        better, worse = scores(model, batch).chunk(2)
        losses = -logsigmoid(better - worse) + self.centre * (better + worse) ** 2
        lead = (better - worse).detach()
        return losses.sum(), {"accuracy": float((lead > 0).sum()), "margin": float(lead.sum())}
