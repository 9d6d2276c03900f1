"""PPO with a reward model or a reward function (Schulman et al. 2017, arXiv 1707.06347; Ouyang et al. 2022, arXiv 2203.02155)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from tunesmith.core.config import Config
from tunesmith.core.examples import IGNORED, Kind
from tunesmith.training.rewards import Reward

if TYPE_CHECKING:
    import torch

KL_STEP = 0.1
"""Share by which the price of divergence moves at most five times as slowly: Ziegler et al. 2019, arXiv 1909.08593, 2.2."""


class Ppo(Config):
    """Draw answers to the prompts, and make likelier what the reward was higher for than the value head expected."""

    kind: Literal["ppo"] = "ppo"
    """Reinforcement from a reward model, with a value head."""
    reward: Reward
    """What scores answers: a reward model (run or folder), or `file.py:function`, or {source: weight, ...}."""
    answer_tokens: Annotated[int, Field(ge=1)] = 128
    """Longest answer that is drawn."""
    epochs: Annotated[int, Field(ge=1)] = 4
    """Updates from the same answers."""
    kl: Annotated[float, Field(ge=0)] = 0.05
    """Reward that a nat of divergence from the untrained model costs."""
    kl_target: Annotated[float, Field(gt=0)] | None = None
    """Nats an answer may diverge: `kl` is raised and lowered to keep to it (arXiv 1909.08593); null leaves it."""
    clip: Annotated[float, Field(gt=0)] = 0.2
    """How far the ratio of new to old probability counts."""
    value_clip: Annotated[float, Field(gt=0)] = 0.2
    """How far a value may move from its old one."""
    value_weight: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the value head's loss."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount of later rewards."""
    lam: Annotated[float, Field(ge=0, le=1)] = 0.95
    """GAE's lambda."""
    unfinished: Annotated[float, Field(ge=0)] = 0.0
    """Reward taken from an answer that did not end by itself."""

    ROWS: ClassVar[tuple[Kind, ...]] = ("conversation", "preference", "feedback")
    NATS_A_TOKEN: ClassVar[bool] = False
    uses_reference: ClassVar[bool] = False
    group: ClassVar[int] = 1
    has_critic: ClassVar[bool] = True

    @model_validator(mode="after")
    def _has_a_price_to_adapt(self) -> Ppo:
        if self.kl_target is not None and not self.kl:
            raise ValueError("kl_target: is kept to by multiplying kl, and kl is 0. Give kl a start, such as 0.05")
        return self

    def count(self, batch: dict[str, torch.Tensor]) -> int:
        """The answers' tokens."""
        return int((batch["labels"] != IGNORED).sum())

    def prepare(self, model: Any, batches: list[dict[str, torch.Tensor]]) -> dict[str, float]:
        """Give drawn answers their advantages and returns.

        Every batch has `old`, `reference` and `values`, each (B, T - 1), and `score` (B,). The reward of a token is what
        its divergence costs; the last one has the score as well.
        """
        import torch

        from tunesmith.training.advantage import gae, whiten

        masks = [batch["labels"][:, 1:] != IGNORED for batch in batches]
        paid = 0.0
        for batch, mask in zip(batches, masks, strict=True):
            divergence = (batch["old"] - batch["reference"]) * mask
            rewards = -model.kl * divergence
            last = mask.shape[1] - 1 - mask.flip(1).int().argmax(dim=1)
            rewards[torch.arange(len(last)), last] += batch["score"]
            batch["advantages"], batch["returns"] = gae(rewards, batch["values"], mask, gamma=self.gamma, lam=self.lam)
            paid += float(divergence.sum())
        for batch, white in zip(batches, whiten([b["advantages"] for b in batches], masks), strict=True):
            batch["advantages"] = white
        if not self.kl:
            return {}  # no reference was asked
        price, kl = float(model.kl), paid / sum(len(batch["score"]) for batch in batches)
        if self.kl_target:
            model.kl.mul_(1 + KL_STEP * min(max(kl / self.kl_target - 1, -0.2), 0.2))
        return {"kl": kl, "kl_price": price}

    def loss(self, model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        """Clipped policy loss (equation 7) and clipped value loss, added up over the answers' tokens."""
        import torch

        mask = batch["labels"][:, 1:] != IGNORED
        losses, values = model(batch)
        ratio = torch.exp((-losses - batch["old"]) * mask)
        wanted = batch["advantages"]
        policy = torch.maximum(-wanted * ratio, -wanted * ratio.clamp(1 - self.clip, 1 + self.clip))
        held = torch.clamp(values, batch["values"] - self.value_clip, batch["values"] + self.value_clip)
        value = 0.5 * torch.maximum((values - batch["returns"]) ** 2, (held - batch["returns"]) ** 2)
        with torch.no_grad():
            clipped = ((ratio - 1).abs() > self.clip) & mask
            seen = {"policy_loss": (policy * mask).sum(), "value_loss": (value * mask).sum(), "clipped": clipped.sum()}
        return ((policy + self.value_weight * value) * mask).sum(), {name: float(it) for name, it in seen.items()}
