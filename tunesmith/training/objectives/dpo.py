"""Preference optimisation without a reward model: DPO, IPO, hinge, cDPO; ORPO and SimPO without a reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from tunesmith.core.config import Config
from tunesmith.core.examples import IGNORED, Kind

if TYPE_CHECKING:
    import torch

WITH_REFERENCE = ("sigmoid", "ipo", "hinge")
SIMPO_MARGIN = 0.5


class Dpo(Config):
    """Make the better of two answers more likely than the other one."""

    kind: Literal["dpo"] = "dpo"
    """Preference optimisation on pairs of answers."""
    variant: Literal["sigmoid", "ipo", "hinge", "orpo", "simpo"] = "sigmoid"
    """The loss: sigmoid is DPO (arXiv 2305.18290), ipo arXiv 2310.12036 on means per token, hinge arXiv 2305.10425; orpo
    (arXiv 2403.07691) and simpo (arXiv 2405.14734) take no reference model, compare means per token and need no pass over
    the data before."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """How strongly answers are held to the reference (ipo: tau; orpo: weight of the odds ratio, the paper's lambda; simpo:
    scale of the reward, the paper takes 2 to 2.5)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of pairs that are thought to be the wrong way round (cDPO); for sigmoid and simpo."""
    margin: Annotated[float, Field(ge=0)] | None = None
    """simpo: the reward by which the better answer should lead (gamma); null takes 0.5."""
    sft_weight: Annotated[float, Field(ge=0)] = 0.0
    """Adds the better answer's mean loss per token times this (RPO, arXiv 2404.19733), which keeps it likely."""

    ROWS: ClassVar[tuple[Kind, ...]] = ("preference",)
    NATS_A_TOKEN: ClassVar[bool] = False

    @model_validator(mode="after")
    def _fits_the_variant(self) -> Dpo:
        if self.label_smoothing and self.variant not in {"sigmoid", "simpo"}:
            raise ValueError(f"label_smoothing goes with sigmoid and simpo. Got variant {self.variant}")
        if self.margin is not None and self.variant != "simpo":
            raise ValueError(f"margin goes with simpo. Got variant {self.variant}")
        if self.sft_weight and self.variant == "orpo":
            raise ValueError("sft_weight: orpo has the better answer's loss already. Leave it out")
        return self

    @property
    def uses_reference(self) -> bool:
        """Whether batches must carry `reference`, the log-probabilities under the untrained model."""
        return self.variant in WITH_REFERENCE

    def count(self, batch: dict[str, torch.Tensor]) -> int:
        """The pairs of a batch."""
        return len(batch["input_ids"]) // 2

    def loss(self, model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        """The losses of all pairs added up; rewards (scaled log-probability ratios), accuracy and margin, added up too.

        `batch` has the better answers in its first half and the others in its second, `reference` (2 B,) beside them.
        """
        import torch

        from tunesmith.models.head import label_losses

        said = -label_losses(model, batch).sum(dim=1)  # (2 B,)
        tokens = (batch["labels"] != IGNORED).sum(dim=1)
        per_token = said / tokens
        scores = said - batch["reference"] if self.uses_reference else per_token
        losses = self._losses(scores, tokens)
        chosen_loss = -per_token.chunk(2)[0]
        losses = losses + (1.0 if self.variant == "orpo" else self.sft_weight) * chosen_loss
        with torch.no_grad():
            better, worse = (self.beta * scores).chunk(2)
            seen = {
                "chosen_reward": better, "rejected_reward": worse, "accuracy": (better > worse).float(),
                "margin": better - worse,
            }  # fmt: skip
        return losses.sum(), {name: float(value.sum()) for name, value in seen.items()}

    def _losses(self, scores: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Losses of the pairs (B,) from the scores (2 B,): log-ratios, or means per token where there is no reference."""
        import torch
        from torch.nn.functional import logsigmoid

        better, worse = scores.chunk(2)
        if self.variant == "ipo":
            better, worse = (scores / tokens).chunk(2)
            return (better - worse - 1 / (2 * self.beta)) ** 2
        if self.variant == "hinge":
            return torch.relu(1 - self.beta * (better - worse))
        if self.variant == "orpo":
            odds = (better - worse) - (_log1mexp(better) - _log1mexp(worse))
            return -self.beta * logsigmoid(odds)
        lead = self.beta * (better - worse)
        if self.variant == "simpo":
            lead = lead - (SIMPO_MARGIN if self.margin is None else self.margin)
        wrong = self.label_smoothing
        return -(1 - wrong) * logsigmoid(lead) - wrong * logsigmoid(-lead)


def _log1mexp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)) for x < 0 without cancellation (Maechler 2012)."""
    import torch

    x = x.clamp(max=-1e-7)  # a certain answer, exp(0), has no odds
    return torch.where(x > -0.693147, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
