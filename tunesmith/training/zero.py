"""DeepSpeed ZeRO: optimizer, gradients and weights spread over processes, in CPU memory where there is room only there.

The presets are all of it: no other DeepSpeed option can be given.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tunesmith.core.errors import TunesmithError
from tunesmith.planning.zero import BUCKET, LIVE
from tunesmith.training.distributed import Team, own_device
from tunesmith.training.optimizer import make_optimizer, set_rate
from tunesmith.training.spread import Portable, Spread, Wish, compute_in, holding

HELD_BY = {0: "AdamW", 1: "DeepSpeedZeroOptimizer", 2: "DeepSpeedZeroOptimizer", 3: "DeepSpeedZeroOptimizer_Stage3"}
MOMENTS = ("exp_avg", "exp_avg_sq")


def preset(wish: Wish, *, on_gpu: bool) -> dict[str, Any]:
    """DeepSpeed's config. Weights stay in the precision they are loaded in, forward passes compute under torch's autocast:
    what is trained is fp32, as in one process.
    """
    stage, offload = wish.devices.stage, wish.devices.offload or "none"
    to_cpu = {"device": "cpu", "pin_memory": on_gpu}
    spread: dict[str, Any] = {
        "stage": stage, "overlap_comm": on_gpu, "reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET,
    }  # fmt: skip
    if offload != "none":
        spread["offload_optimizer"] = to_cpu
    if offload == "all":
        spread["offload_param"] = to_cpu
    if stage == 3:
        spread |= {
            "stage3_prefetch_bucket_size": BUCKET, "stage3_param_persistence_threshold": 10_000,
            "stage3_max_live_parameters": LIVE,
        }  # fmt: skip
    return {
        "train_micro_batch_size_per_gpu": wish.rows, "gradient_accumulation_steps": 1,
        "gradient_clipping": wish.optimizer.max_gradient_norm or 0.0, "zero_optimization": spread,
        "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False, "steps_per_print": 10**9,
    }  # fmt: skip


class Zero(Spread):
    """The model in a DeepSpeed engine."""

    def __init__(self, model: Any, wish: Wish, team: Team) -> None:  # pyright: ignore[reportMissingSuperCall]
        import deepspeed
        import deepspeed.ops

        # nothing is compiled: Adam and the messages are torch's
        setattr(deepspeed.ops, "__compatible_ops__", defaultdict(bool))  # noqa: B010 - a name that its stubs do not know
        self.bare, self.team, self.device = model, team, torch.device(own_device())
        self._stage, self._limit = int(wish.devices.stage or 0), wish.optimizer.max_gradient_norm
        compute_in(model, wish.precision, self.device)
        optimizer = make_optimizer(model, wish.optimizer, wish.rate_factor)
        self._trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if not torch.distributed.is_initialized():
            raise TunesmithError("devices.kind", "zero must be started by torchrun")
        deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), verbose=False)
        self.model, self.optimizer, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=preset(wish, on_gpu=self.device.type == "cuda")
        )
        self._check(wish.devices.offload or "none")

    def _check(self, offload: str) -> None:
        """Raise TunesmithError where DeepSpeed holds the model otherwise than it was told."""
        found = (type(self.optimizer).__name__, self.model.zero_optimization_stage(), _offload_of(self.optimizer))
        wanted = (HELD_BY[self._stage], self._stage, offload)
        if found != wanted:
            raise TunesmithError("devices.stage", f"DeepSpeed should hold it as {wanted}", got=found)

    def set_rate(self, rate: float) -> None:
        """Give every group its learning rate where the schedule's is `rate`."""
        set_rate(self.optimizer, rate)

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """As `Spread.backward`; DeepSpeed averages too."""
        self.model.set_gradient_accumulation_boundary(is_last)
        self.model.backward(loss * self.team.processes, scale_wrt_gas=False)
        if not is_last:
            self.model.step()

    def step(self) -> float:
        """Move the weights. Returns the length of the gradient before it is limited."""
        norm = None
        if not self._stage:
            norm = torch.nn.utils.get_total_norm([p.grad for p in self._trained if p.grad is not None])
        self.model.step()
        norm = self.model.get_global_grad_norm() if norm is None else norm
        return math.nan if norm is None or float(norm) < 0 else float(norm)  # -1 stands for what is no number

    def whole_optimizer(self) -> Portable:
        """Moments in the shapes of their parameters, on the CPU, in the first process alone; all take part."""
        return Portable(self._gathered(), self._load)

    def _gathered(self) -> dict[int, dict[str, Any]]:
        if not self._stage:
            return self.optimizer.state_dict()["state"]
        from deepspeed.utils import safe_get_full_optimizer_state

        steps = [entry["step"] for entry in self._flat_states()]
        if not steps:
            return {}
        if (
            self._stage < 3
        ):  # DeepSpeed links moments to parameters once, at the first step, when some groups have none yet
            self.optimizer._hp_optimizer_states_linked = False
            self.optimizer._lazy_init_hp_params_optimizer_state()
        found: dict[int, dict[str, Any]] = {}
        for number, parameter in enumerate(self._trained):
            moments: dict[str, Any] = {name: safe_get_full_optimizer_state(parameter, name) for name in MOMENTS}
            if self.team.is_first:
                found[number] = {"step": steps[0].cpu(), **{name: value.cpu() for name, value in moments.items()}}
        return found

    def _inner(self) -> torch.optim.Optimizer:
        return self.optimizer.optimizer

    def _flat_states(self) -> list[dict[str, Any]]:
        return [entry for entry in self._inner().state.values() if "step" in entry]

    def _load(self, state: dict[int, dict[str, Any]]) -> None:
        if not self._stage:
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
            return
        from deepspeed.utils import safe_set_full_optimizer_state

        zero = self.optimizer
        flat = zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups
        for part in flat:
            made = {name: torch.zeros_like(part, memory_format=torch.preserve_format) for name in MOMENTS}
            self._inner().state[part] = {"step": next(iter(state.values()))["step"].clone(), **made}
        if self._stage < 3:
            zero._lazy_init_hp_params_optimizer_state()
        for number, parameter in enumerate(self._trained):
            for name in MOMENTS if number in state else ():  # one that never had a gradient has no moments
                safe_set_full_optimizer_state(parameter, state[number][name].to(parameter.device), name)

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        """While it lasts the first process's `bare` holds all trained weights. All processes enter it together."""
        from deepspeed.utils import safe_get_full_fp32_param

        found: dict[int, torch.Tensor] = {}
        for parameter in self._trained:
            whole: Any = parameter if not self._stage else safe_get_full_fp32_param(parameter)
            if self.team.is_first:
                found[id(parameter)] = whole.detach().cpu().clone()
        with holding(self.bare, found):
            yield


def _offload_of(optimizer: Any) -> str:
    """What one of DeepSpeed's optimizers keeps in CPU memory."""
    if getattr(optimizer, "offload_param", False):
        return "all"
    on_cpu = getattr(optimizer, "offload_optimizer", False) or getattr(optimizer, "cpu_offload", False)
    return "optimizer" if on_cpu else "none"
