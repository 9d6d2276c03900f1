"""Muon for the matrices inside the layers and another optimizer for the rest, as one optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Muon, Optimizer

if TYPE_CHECKING:
    from tunesmith.training.optimizer import OptimizerConfig


def hidden_matrices(model: torch.nn.Module) -> set[int]:
    """id() of every matrix but embeddings and output head: those that arXiv 2502.16982 leaves to AdamW."""
    outside = {
        id(p) for module in model.modules() if isinstance(module, torch.nn.Embedding) for p in module.parameters()
    }
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is not None:
        outside |= {id(parameter) for parameter in head.parameters()}
    return {id(parameter) for parameter in model.parameters() if parameter.ndim == 2} - outside


def make_muon(groups: list[dict[str, Any]], wish: OptimizerConfig) -> Muon:
    """Steps as long as AdamW's (section 2.2 of arXiv 2502.16982), so that one learning rate serves both."""
    return Muon(groups, lr=wish.peak, weight_decay=wish.weight_decay, adjust_lr_fn="match_rms_adamw")


class Together(Optimizer):
    """Several optimizers, each over its own parameters, with one state and one list of groups."""

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        self._share()

    def _share(self) -> None:
        """The parts work on our state and groups: what is saved and restored here is theirs."""
        first = 0
        for part in self.parts:
            last = first + len(part.param_groups)
            part.state, part.param_groups = self.state, self.param_groups[first:last]
            first = last

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of every part; a closure is not taken."""
        assert closure is None
        for part in self.parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As Optimizer's, which makes new state and groups."""
        super().load_state_dict(state_dict)
        self._share()
