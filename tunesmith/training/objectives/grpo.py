"""GRPO: several answers to each prompt, each compared with the others (Shao et al. 2024, arXiv 2402.03300)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from tunesmith.core.config import Config
from tunesmith.core.examples import IGNORED, Kind
from tunesmith.training.rewards import Reward

if TYPE_CHECKING:
    import torch


class Grpo(Config):
    """Draw several answers to each prompt, and make likelier those that were better than the mean of their group."""

    kind: Literal["grpo"] = "grpo"
    """Reinforcement from groups of answers, without a value head."""
    reward: Reward
    """What scores answers: a reward model (run or folder), or `file.py:function`, or {source: weight, ...}."""
    answers: Annotated[int, Field(ge=2)] = 8
    """Answers to each prompt; a step draws batch.rows x batch.accumulate prompts."""
    answer_tokens: Annotated[int, Field(ge=1)] = 128
    """Longest answer that is drawn."""
    epochs: Annotated[int, Field(ge=1)] = 1
    """Updates from the same answers."""
    kl: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the divergence from the untrained model in the loss; the paper takes 0.04, 0 leaves the reference out."""
    clip: Annotated[float, Field(gt=0)] = 0.2
    """How far the ratio of new to old probability counts downwards, and upwards where clip_high is null."""
    clip_high: Annotated[float, Field(gt=0)] | None = None
    """How far it counts upwards (0.28 in DAPO, arXiv 2503.14476)."""
    variant: Literal["dapo", "grpo", "dr_grpo"] = "dapo"
    """What the loss is a mean over: all tokens of the step (dapo), each answer's tokens first (grpo, the paper), or
    answer_tokens for each answer (dr_grpo, arXiv 2503.20783)."""
    scaled: bool = True
    """Divide by the standard deviation of the group; dr_grpo's authors do not."""
    unfinished: Annotated[float, Field(ge=0)] = 0.0
    """Reward taken from an answer that did not end by itself."""

    ROWS: ClassVar[tuple[Kind, ...]] = ("conversation", "preference", "feedback")
    NATS_A_TOKEN: ClassVar[bool] = False
    uses_reference: ClassVar[bool] = False
    has_critic: ClassVar[bool] = False

    @property
    def group(self) -> int:
        """Answers to each prompt."""
        return self.answers

    def count(self, batch: dict[str, torch.Tensor]) -> int:
        """What the variant's mean is over."""
        if self.variant == "dapo":
            return int((batch["labels"] != IGNORED).sum())
        return len(batch["labels"]) * (self.answer_tokens if self.variant == "dr_grpo" else 1)

    def prepare(self, model: Any, batches: list[dict[str, torch.Tensor]]) -> dict[str, float]:  # noqa: ARG002 - as ppo
        """Give drawn answers their advantages, (B, 1).

        Every batch has `score` and `place` (B,); the places of all batches count the answers, group after group.
        """
        import torch

        from tunesmith.training.advantage import group_advantages

        places = torch.cat([batch["place"] for batch in batches])
        scores = torch.empty(len(places), device=places.device).index_copy(
            0, places, torch.cat([batch["score"] for batch in batches])
        )
        groups = scores.view(-1, self.answers)
        advantages = group_advantages(groups, scaled=self.scaled).flatten()
        for batch in batches:
            batch["advantages"] = advantages[batch["place"], None]
        return {"equal_groups": float((groups.std(dim=1) == 0).float().mean())}

    def loss(self, model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        """Clipped loss, with the divergence from the reference (equation 4) where it has a weight, added up."""
        import torch

        from tunesmith.models.head import label_losses

        mask = batch["labels"][:, 1:] != IGNORED
        said = -label_losses(model, batch)
        ratio, wanted = torch.exp((said - batch["old"]) * mask), batch["advantages"]
        high = self.clip if self.clip_high is None else self.clip_high
        losses = -torch.minimum(wanted * ratio, wanted * ratio.clamp(1 - self.clip, 1 + high))
        clipped = (((ratio < 1 - self.clip) & (wanted < 0)) | ((ratio > 1 + high) & (wanted > 0))) & mask
        share = clipped.float()
        if self.kl:
            behind = (batch["reference"] - said) * mask
            losses = losses + self.kl * (behind.exp() - behind - 1)
        losses = losses * mask
        tokens = mask.sum(dim=1, keepdim=True)
        if self.variant == "grpo":
            losses, share = losses / tokens, share / tokens
        elif self.variant == "dr_grpo":  # its mean counts tokens that nobody drew
            share = share * self.answer_tokens / tokens
        return losses.sum(), {"clipped": float(share.sum())}
