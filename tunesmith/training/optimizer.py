"""The optimizer and its learning-rate schedule."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from tunesmith.core.config import Config
from tunesmith.core.errors import MissingExtra, UsageError
from tunesmith.planning.optimizers import OptimizerKind

if TYPE_CHECKING:
    import torch
    from torch.optim import Optimizer

    from tunesmith.models.shape import Shape


BETAS, EPSILON = (0.9, 0.999), 1e-8
"""AdamW's, where the config says nothing."""


class OptimizerConfig(Config):
    """The rule by which weights move, and how long it runs. Bytes count what stays in memory for one trained parameter."""

    kind: OptimizerKind = "adamw"
    """adamw (arXiv 1711.05101): 8 bytes, the fused kernel, the fastest. adamw_8bit (arXiv 2110.02861): 2 bytes; a very
    slow step on CPU; needs the extra qlora. paged_adamw_8bit: the same, moved to CPU memory while a GPU has none left; needs a GPU.
    adafactor (arXiv 1804.04235, without momentum, the rate as given): next to nothing, since rows and columns stand for a
    matrix; often a higher loss. muon (arXiv 2502.16982: matrices inside the layers, adamw for the rest): 4 bytes for those
    matrices and a step that takes several products of each."""
    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] | None = None
    """Peak learning rate; null takes what is usual for the method, the objective and the model's width, and says it. auto
    trains a few steps at several rates before the first step, compares the loss on rows they do not train on, takes the
    lowest rate that is nearly the best, and goes back to the start; for at most a quarter of the run's steps in time."""
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
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] | None = None
    """Decay of AdamW's two moment estimates; null takes 0.9 and 0.999. Adafactor has none."""
    epsilon: Annotated[float, Field(gt=0)] | None = None
    """Keeps the division of AdamW finite; null takes 1e-8. Adafactor has none."""

    @field_validator("betas", "epsilon")
    @classmethod
    def _known_to_the_kind(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("kind") == "adafactor":
            raise ValueError("adafactor has no such number")
        return value

    @property
    def peak(self) -> float:
        """The peak learning rate as a number; a run settles what is left open before it makes an optimizer."""
        assert isinstance(self.learning_rate, float), "an optimizer is made before the learning rate is chosen"
        return self.learning_rate


SMALLER = {"dpo": 0.25, "kto": 0.25, "ppo": 0.5}
"""Objectives that want a smaller rate than answers do, as a share of it."""


def usual_rate(config: Any, shape: Shape) -> float:
    """What a TrainConfig's method and objective learn with where nothing else is said, and around which is searched."""
    return short(config.method.usual_rate(shape) * SMALLER.get(config.objective.kind, 1.0))


def short(rate: float) -> float:
    """The rate as a person types it: what is chosen stands in config.yaml."""
    return float(f"{rate:.3g}")


RATE_FACTOR = "rate_factor"
"""In a parameter group: its learning rate as a multiple of the schedule's."""


def check_optimizer(wish: OptimizerConfig, device: str) -> None:
    """Raise MissingExtra or UsageError where the optimizer cannot run here; `device` is cuda or cpu."""
    if wish.kind == "paged_adamw_8bit" and device != "cuda":
        why = "moves its state between GPU and CPU memory, and there is no GPU here"
        raise UsageError("optimizer.kind", f"{wish.kind} {why}", do="Choose adamw_8bit")
    if wish.kind.endswith("adamw_8bit") and importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtra("optimizer.kind", f"{wish.kind} needs bitsandbytes", do="pip install 'tunesmith[qlora]'")


def make_optimizer(model: torch.nn.Module, wish: OptimizerConfig, factor: Callable[[str], float]) -> Optimizer:
    """The optimizer over the trainable parameters; `factor(name)` multiplies the learning rate of a parameter."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if wish.kind == "muon":
        from tunesmith.training.muon import Together, hidden_matrices, make_muon

        inside = hidden_matrices(model)
        matrices = {name: parameter for name, parameter in named.items() if id(parameter) in inside}
        rest = {name: parameter for name, parameter in named.items() if name not in matrices}
        parts = [(make_muon, matrices), (_adamw, rest)]
        return Together([make(_by_factor(some, factor), wish) for make, some in parts if some])
    groups = _by_factor(named, factor)
    if wish.kind == "adafactor":
        return _adafactor(groups, wish)
    return _adamw(groups, wish) if wish.kind == "adamw" else _adamw_8bit(groups, wish)


def _by_factor(named: dict[str, torch.nn.Parameter], factor: Callable[[str], float]) -> list[dict[str, Any]]:
    """Parameter groups of one learning rate each."""
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in named.items():
        groups.setdefault(factor(name), []).append(parameter)
    return [{"params": trained, RATE_FACTOR: by} for by, trained in groups.items()]


def _adam_words(wish: OptimizerConfig) -> dict[str, Any]:
    return {
        "lr": wish.peak, "betas": wish.betas or BETAS, "eps": wish.epsilon or EPSILON,
        "weight_decay": wish.weight_decay,
    }  # fmt: skip


def _adamw(groups: list[dict[str, Any]], wish: OptimizerConfig) -> Optimizer:
    import torch

    return torch.optim.AdamW(groups, **_adam_words(wish), fused=True)


def _adamw_8bit(groups: list[dict[str, Any]], wish: OptimizerConfig) -> Optimizer:
    from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit

    return {"adamw_8bit": AdamW8bit, "paged_adamw_8bit": PagedAdamW8bit}[wish.kind](groups, **_adam_words(wish))


def _adafactor(groups: list[dict[str, Any]], wish: OptimizerConfig) -> Optimizer:
    """With the rate as given: the paper's own rate follows the length of a matrix, and LoRA's B begins at zero."""
    from transformers.optimization import Adafactor

    return Adafactor(
        groups, lr=wish.peak, weight_decay=wish.weight_decay,
        scale_parameter=False, relative_step=False, warmup_init=False,
    )  # fmt: skip


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
        return wish.peak * (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    factor = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}[wish.schedule]
    return wish.peak * factor
