"""A model and its optimizer as the processes of a run hold them: whole in each, or spread over all.

Whatever the kind, weights and optimizer are saved as one process would have them. Knows no loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from tunesmith.core.errors import TunesmithError
from tunesmith.training.distributed import DevicesConfig, Team
from tunesmith.training.optimizer import OptimizerConfig, make_optimizer, set_rate

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


@dataclass(frozen=True, slots=True)
class Wish:
    """What a spread is made of, besides the model."""

    optimizer: OptimizerConfig
    rate_factor: Callable[[str], float]
    precision: str
    devices: DevicesConfig
    rows: int
    """Rows that go through the model together."""


class Spread:
    """One process, or DDP: every process holds the whole model and the whole optimizer. By accelerate."""

    def __init__(self, model: Any, wish: Wish, team: Team) -> None:
        AcceleratorState._reset_state()  # pyright: ignore[reportPrivateUsage] - keeps what an earlier run had
        on_cpu = team.processes > 1 and not torch.cuda.is_available()
        self._accelerator = Accelerator(mixed_precision="bf16" if wish.precision == "bf16" else "no", cpu=on_cpu)
        self.bare, self.team = model, team
        self.optimizer: Any = make_optimizer(model, wish.optimizer, wish.rate_factor)
        self.model, self._stepper = self._accelerator.prepare(model, self.optimizer)
        self.device = self._accelerator.device
        self._limit = wish.optimizer.max_gradient_norm
        _check(self.model, "DistributedDataParallel" if team.processes > 1 else type(model).__name__)

    def set_rate(self, rate: float) -> None:
        """Give every group its learning rate where the schedule's is `rate`."""
        set_rate(self.optimizer, rate)

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Add the gradient of a loss whose sum over all processes and batches is what is trained.

        Gradients are averaged over the processes, so each loss counts as often as there are processes; they are exchanged
        with the last batch.
        """
        alone = self.team.processes == 1
        with nullcontext() if is_last or alone else self.model.no_sync():
            self._accelerator.backward(loss if alone else loss * self.team.processes)

    def step(self) -> float:
        """Move the weights and forget the gradients. Returns the length of the gradient before it is limited."""
        limit = math.inf if self._limit is None else self._limit
        norm = self._accelerator.clip_grad_norm_(self.model.parameters(), limit)
        self._stepper.step()
        self._stepper.zero_grad(set_to_none=True)
        return math.nan if norm is None else float(norm)

    def whole_optimizer(self) -> Any:
        """The optimizer as one process has it, with `state_dict` and `load_state_dict`."""
        return self.optimizer

    def whole_weights(self) -> AbstractContextManager[None]:
        """While it lasts the first process's `bare` holds all trained weights. All processes enter it together."""
        return nullcontext()


class Portable:
    """The optimizer state as one process has it: by the number of the parameter, each entry in the parameter's shape."""

    def __init__(self, state: dict[int, dict[str, Any]], load: Callable[[dict[int, dict[str, Any]]], None]) -> None:
        self._state, self._load = state, load

    def state_dict(self) -> dict[str, Any]:
        """As torch's optimizers."""
        return {"state": self._state}

    def load_state_dict(self, document: dict[str, Any]) -> None:
        """As torch's optimizers."""
        self._load(document["state"])


def spread_over(model: Any, wish: Wish, team: Team) -> Spread:
    """The model and a new optimizer as the config wants them held. Raises TunesmithError where that did not come about."""
    if wish.devices.kind == "zero":
        from tunesmith.training.zero import Zero

        return Zero(model, wish, team)
    if wish.devices.kind == "fsdp":
        from tunesmith.training.sharded import Sharded

        return Sharded(model, wish, team)
    return Spread(model, wish, team)


def _check(model: Any, wanted: str) -> None:
    """What a library silently does in place of what was asked is a defect, not a fall-back."""
    if type(model).__name__ != wanted:
        raise TunesmithError("devices.kind", f"the model should be held by {wanted}", got=type(model).__name__)


def compute_in(model: Any, precision: str, device: torch.device) -> None:
    """Let the forward pass compute in bf16 where the run does, and answer in fp32, as accelerate does."""
    if precision == "bf16":
        from accelerate.utils import convert_outputs_to_fp32

        model.forward = convert_outputs_to_fp32(torch.autocast(device.type, torch.bfloat16)(model.forward))


@contextmanager
def holding(model: Any, weights: dict[int, torch.Tensor]) -> Iterator[None]:
    """While it lasts parameters are these tensors; `weights` is by the id of the parameter, shared ones stay shared."""
    new = {number: torch.nn.Parameter(tensor, requires_grad=True) for number, tensor in weights.items()}
    places = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if id(parameter) in new
    ]
    for module, name, parameter in places:
        module._parameters[name] = new[id(parameter)]
    try:
        yield
    finally:
        for module, name, parameter in places:
            module._parameters[name] = parameter
