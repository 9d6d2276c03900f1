"""The optimizer and its learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from tunesmith.core.config import Config

if TYPE_CHECKING:
    import torch


class OptimizerConfig(Config):
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101) and how long it runs."""

    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """Peak learning rate. 2e-4 suits LoRA; full tuning wants about a tenth, bottleneck 1e-3, p_tuning 5e-3, prefix 1e-2,
    prompt 3e-2."""
    epochs: Annotated[float, Field(gt=0)] = 3
    """Passes over the data."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps; replaces epochs where given."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after warmup: to zero by a half cosine or a line, or not at all."""
    warmup: Annotated[float, Field(ge=0)] = 0.03
    """Below 1 a share of all steps, from 1 on a number of steps, in which the learning rate rises from zero."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay."""
    max_gradient_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Gradients are scaled down to this length; null leaves them."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay of the two moment estimates."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Keeps the division of AdamW finite."""


RATE_FACTOR = "rate_factor"
"""In a parameter group: its learning rate as a multiple of the schedule's."""


def make_optimizer(model: torch.nn.Module, wish: OptimizerConfig, factor: Callable[[str], float]) -> torch.optim.AdamW:
    """Fused AdamW over the trainable parameters; `factor(name)` multiplies the learning rate of a parameter."""
    import torch

    groups: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(factor(name), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": trained, RATE_FACTOR: by} for by, trained in groups.items()],
        lr=wish.learning_rate,
        betas=wish.betas,
        eps=wish.epsilon,
        weight_decay=wish.weight_decay,
        fused=True,
    )


def set_rate(optimizer: Any, rate: float) -> None:
    """Give every group its learning rate where the schedule's is `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[RATE_FACTOR]


def learning_rate(wish: OptimizerConfig, step: int, steps: int) -> float:
    """The learning rate of step `step` (from 0) of `steps`.

    Warmup rises linearly and reaches the peak in its last step; the first step is never zero.
    """
    warmup = round(wish.warmup * steps) if wish.warmup < 1 else round(wish.warmup)
    if step < warmup:
        return wish.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    factor = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}[wish.schedule]
    return wish.learning_rate * factor
