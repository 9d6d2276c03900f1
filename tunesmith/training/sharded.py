"""FSDP2: torch's fully_shard over every decoder block and the rest. Knows no loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tunesmith.core.errors import TunesmithError
from tunesmith.models.adapter import blocks
from tunesmith.training.distributed import Team, own_device
from tunesmith.training.optimizer import make_optimizer, set_rate
from tunesmith.training.spread import Portable, Spread, Wish, compute_in, holding


class Sharded(Spread):
    """Each process holds a piece of every parameter; a block's pieces come together while it computes."""

    def __init__(self, model: Any, wish: Wish, team: Team) -> None:  # pyright: ignore[reportMissingSuperCall]
        self.device = torch.device(own_device())
        compute_in(model, wish.precision, self.device)
        mesh = init_device_mesh(self.device.type, (team.processes,))
        for block in blocks(model):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        self.bare = self.model = model
        self.team, self._limit = team, wish.optimizer.max_gradient_norm
        self.optimizer = make_optimizer(model, wish.optimizer, wish.rate_factor)
        self._trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self._check()

    def _check(self) -> None:
        whole = [name for name, parameter in self.bare.named_parameters() if not isinstance(parameter, DTensor)]
        if whole or not isinstance(self.bare, FSDPModule):
            raise TunesmithError(
                "devices.kind", "fsdp should spread every parameter", got=(whole or [type(self.bare)])[0]
            )

    def set_rate(self, rate: float) -> None:
        """Give every group its learning rate where the schedule's is `rate`."""
        set_rate(self.optimizer, rate)

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:  # noqa: ARG002 - every kind has it
        """As `Spread.backward`; gradients are exchanged with every batch, so that no process holds them whole."""
        (loss * self.team.processes).backward()

    def step(self) -> float:
        """Move the weights and forget the gradients. Returns the length of the gradient before it is limited."""
        gradients = [parameter.grad for parameter in self._trained if parameter.grad is not None]
        norm: Any = torch.nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if self._limit is not None:
            torch.nn.utils.clip_grads_with_norm_(self._trained, self._limit, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def whole_optimizer(self) -> Portable:
        """Moments in the shapes of their parameters, on the CPU, in the first process alone; all take part."""
        state = self.optimizer.state_dict()["state"]
        found = {number: {name: _whole(value) for name, value in entry.items()} for number, entry in state.items()}
        return Portable(found if self.team.is_first else {}, self._load)

    def _load(self, state: dict[int, dict[str, Any]]) -> None:
        for number, entry in state.items():
            parameter = self._trained[number]
            self.optimizer.state[parameter] = {
                name: _piece(value, parameter) if value.shape == parameter.shape else value.clone()
                for name, value in entry.items()
            }

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        """While it lasts the first process's `bare` holds all trained weights. All processes enter it together."""
        for module in self.bare.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # an evaluation leaves the outermost together
        whole = {id(parameter): _whole(parameter.detach()) for parameter in self._trained}
        with holding(self.bare, whole if self.team.is_first else {}):
            yield


def _whole(value: Any) -> Any:
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def _piece(value: torch.Tensor, like: Any) -> DTensor:
    there = value.to(like.device)
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)
