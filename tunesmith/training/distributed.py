"""Many processes as one: how many there are, which of them this one is, what they tell each other. Knows no model.

Every process takes its share of a step's batches; numbers are added over all of them, so that all decide alike.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import Field, model_validator

from tunesmith.core import hardware
from tunesmith.core.config import Config
from tunesmith.core.errors import MissingExtra, UsageError
from tunesmith.core.run import Run
from tunesmith.data.batch import BatchConfig

if TYPE_CHECKING:
    import torch

    from tunesmith.core.artifacts import MemoryPlan
    from tunesmith.models.shape import Shape
    from tunesmith.planning.memory import Wish as PlanWish
    from tunesmith.planning.zero import Layout

Stage = Literal["auto", 0, 1, 2, 3]
Offload = Literal["none", "optimizer", "all"]
PATIENCE_HOURS = 6
"""How long processes wait for each other, for instance while the first one writes a checkpoint."""

T = TypeVar("T")


class DevicesConfig(Config):
    """Processes that train together, and what each of them holds."""

    kind: Literal["one", "ddp", "zero", "fsdp"] = "one"
    """one process; ddp: every process holds everything, the fastest; zero (DeepSpeed, extra distributed) and fsdp (torch's
    fully_shard) spread it over the processes, which takes less memory in each and more messages between them."""
    processes: Annotated[int, Field(ge=1)] = 1
    """Processes on each host: one a GPU, or on CPU as many as there are cores to spare."""
    hosts: tuple[str, ...] = ()
    """Names or addresses of several hosts, the first one leads. Every host sees the run folder, the rows and the model
    under the same path; train prepares the run and prints the command for each of them."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Where the processes find each other; null takes a free one on one host and 29500 on several."""
    stage: Stage | None = None
    """zero: what is spread: 1 the optimizer, 2 and gradients, 3 and weights; 0 nothing. auto, which null means, takes the
    first of ddp, 1, 2, 2 with offload, 3, 3 with offload that fits into memory."""
    offload: Offload | None = None
    """zero: what lies in CPU memory in place of the GPU's: none, the optimizer, or all (weights too, stage 3). null means
    none, or with stage auto what the stage takes."""

    @model_validator(mode="after")
    def _fits_the_kind(self) -> DevicesConfig:
        if self.kind == "one":
            for name, given in (("processes", self.processes > 1), ("hosts", self.hosts), ("port", self.port)):
                if given:
                    raise ValueError(f"{name}: kind one is a single process. Choose ddp, zero or fsdp")
        if self.kind != "zero" and (self.stage is not None or self.offload is not None):
            raise ValueError(f"stage and offload go with kind zero, not with {self.kind}")
        for host in self.hosts:
            if not host.strip() or host.count(":") == 1:
                raise ValueError("hosts: must be names or addresses; their port goes into devices.port")
        if len(set(self.hosts)) < len(self.hosts):
            raise ValueError("hosts: each one once; how many processes it has says devices.processes")
        if self.offload in {"optimizer", "all"} and self.stage in {None, "auto"}:
            raise ValueError("offload: stage auto chooses it itself. Leave it out or name a stage")
        if self.offload in {"optimizer", "all"} and self.stage == 0:
            raise ValueError("offload: stage 0 keeps everything where it is. Choose stage 1, 2 or 3")
        if self.offload == "all" and self.stage != 3:
            raise ValueError("offload: all goes with stage 3, which spreads weights")
        return self

    @property
    def total(self) -> int:
        """Processes on all hosts."""
        return self.processes * max(1, len(self.hosts))

    @property
    def spreads_weights(self) -> bool:
        """Whether a process holds a share of every weight only, or may be told to."""
        return self.kind == "fsdp" or (self.kind == "zero" and self.stage in {3, "auto", None})

    def layouts(self) -> Sequence[Layout]:
        """What may be chosen, the fastest first; one where nothing is left open."""
        from tunesmith.planning.zero import FASTEST_FIRST, Layout

        assert self.kind != "one"
        if self.kind != "zero":
            return [Layout(self.kind)]
        if self.stage is None or self.stage == "auto":
            return FASTEST_FIRST
        return [Layout(self.kind, self.stage, self.offload or "none")]

    def held_as(self, layout: Layout) -> DevicesConfig:
        """The same processes with what was left open decided."""
        spread = {"stage": layout.stage, "offload": layout.offload} if layout.kind == "zero" else {}
        return DevicesConfig(
            kind=layout.kind, processes=self.processes, hosts=self.hosts, port=self.port, **spread,
        )  # fmt: skip


def plan_devices(shape: Shape, wish: PlanWish, devices: DevicesConfig) -> tuple[MemoryPlan, DevicesConfig, list[str]]:
    """The memory plan of a process on this machine, what was left open in `devices` decided, and lines that say why."""
    from tunesmith.core.hardware import probe
    from tunesmith.planning.memory import plan_memory
    from tunesmith.planning.zero import choose_layout

    if devices.kind == "one":
        return plan_memory(shape, wish, probe()), devices, []
    processes = (devices.processes, devices.total)
    laid, lines = choose_layout(shape, wish, probe(), processes, devices.layouts())
    many = f"processes {devices.total}, each {laid.layout.name}" if not lines else f"processes {devices.total}"
    return laid.plan, devices.held_as(laid.layout), [many, *lines]


def check_same_step(then: Any, now: Any) -> None:
    """Raise UsageError where a resumed run (TrainConfig) would have other rows in a step than it began with."""
    rows = [config.batch.rows * config.batch.accumulate * config.devices.total for config in (then, now)]
    if rows[0] != rows[1]:
        batches, rest = divmod(rows[0], now.batch.rows * now.devices.total)
        do = f"--batch.accumulate {batches}" if not rest else "Choose --batch.rows and --batch.accumulate to match"
        what = f"a step of this run has {rows[0]} rows in all processes together"
        raise UsageError("batch", what, got=rows[1], do=do)


VIRTUAL = {"prompt", "prefix", "p_tuning"}
SPREADABLE = {"pretrain", "sft", "dpo"}


def check_companions(devices: DevicesConfig, method: str, objective: str, optimizer: str) -> None:
    """Raise UsageError for a method, objective or optimizer that does not go with the kind of devices."""
    kind = devices.kind
    for name, value, wrong, why in (
        ("objective", objective, kind != "one" and objective in {"ppo", "grpo"}, "draws answers, in one process only"),
        ("objective", objective, kind in {"zero", "fsdp"} and objective not in SPREADABLE,
         f"goes with one process or ddp; {kind} takes {', '.join(sorted(SPREADABLE))}"),
        ("method", method, devices.spreads_weights and method in VIRTUAL, "asks for its virtual tokens outside the model"),
        ("method", method, devices.spreads_weights and method == "qlora", "keeps its base in four bits, which are not spread"),
        ("optimizer", optimizer, kind in {"zero", "fsdp"} and optimizer != "adamw",
         f"goes with one process or ddp; {kind} takes adamw"),
    ):  # fmt: skip
        if wrong:
            do = "Choose one process or ddp" if kind != "ddp" else "Choose one process"
            raise UsageError(f"{name}.kind", f"{value} {why}", got=f"devices {kind}", do=do)


@dataclass(frozen=True, slots=True)
class Team:
    """The processes of a run; one alone is a team of its own, whose members need no messages."""

    rank: int = 0
    """Which of them this process is, from 0."""
    processes: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def batch(self, own: BatchConfig) -> BatchConfig:
        """What all processes do in a step, as one process would: `own` is what each of them does."""
        return own.model_copy(update={"accumulate": own.accumulate * self.processes})

    def shares(self, batches: Sequence[T]) -> Iterator[tuple[T, bool]]:
        """The batches of this process and whether each counts.

        All processes get equally many, since each of them takes part in every exchange: where batches run out, one that
        another process has too comes again and does not count.
        """
        for first in range(0, len(batches), self.processes):
            place = first + self.rank
            yield (batches[place], True) if place < len(batches) else (batches[first], False)

    def total(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """The sums over all processes, the same to the last bit in each of them."""
        if self.processes == 1:
            return dict(numbers)
        import torch
        import torch.distributed as dist

        names = sorted(numbers)
        own = torch.tensor([numbers[name] for name in names], dtype=torch.float64)
        each = [torch.empty_like(own) for _ in range(self.processes)]
        dist.all_gather(each, own)
        return dict(zip(names, torch.stack(each).sum(dim=0).tolist(), strict=True))

    def collect(self, value: Any) -> list[Any]:
        """What every process has, in their order; small things only."""
        if self.processes == 1:
            return [value]
        import torch.distributed as dist

        each: list[Any] = [None] * self.processes
        dist.all_gather_object(each, value)
        return each

    def wait(self) -> None:
        """Until all processes are here."""
        self.total({"here": 1.0})

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process does it while the others wait; then they do it."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()


ALONE, ONE = Team(), DevicesConfig()


class SilentRun(Run):
    """The run folder in a process that only reads it: no event, no line."""

    def event(self, kind: str, **facts: Any) -> None:
        """Nothing; the first process writes it."""

    def warn(self, text: str) -> None:
        """Nothing; the first process says it."""


@contextmanager
def joined() -> Iterator[Team]:
    """Join the processes that torchrun has started: gloo on CPU, NCCL between GPUs and gloo for plain numbers."""
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=timedelta(hours=PATIENCE_HOURS))
    try:
        yield Team(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def own_device() -> str:
    """Where this process computes: its GPU, or the CPU."""
    import torch

    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


def check_device(planned: str, run: Run) -> None:
    """Raise MissingExtra where a plan for `planned` counts with a GPU that torch cannot use; warn where torch has one that
    the plan does not know.
    """
    own = own_device().split(":")[0]
    if planned == "cuda" and own == "cpu":
        raise MissingExtra(
            "devices", "this machine has a GPU, and the installed torch cannot use it",
            do="Install a torch with CUDA for its driver, or set CUDA_VISIBLE_DEVICES= (empty) to train on the processor",
        )  # fmt: skip
    if planned == "cpu" and own == "cuda":
        run.warn("torch trains on a GPU that nvidia-smi does not show: memory is planned and judged as if it were RAM")


def held_bytes() -> int:
    """Memory that this process holds now where it computes: on its GPU what torch has taken of it, else RAM.

    The driver's context on a GPU, which is of the whole process and the plan counts, is not in it.
    """
    import torch

    return torch.cuda.memory_reserved() if torch.cuda.is_available() else hardware.memory_bytes()


def peak_bytes() -> int:
    """The most of `held_bytes` since the last `count_peak_anew`."""
    import torch

    return torch.cuda.max_memory_reserved() if torch.cuda.is_available() else hardware.peak_memory_bytes()


def count_peak_anew() -> None:
    """Let `peak_bytes` begin with what is held now, on the GPU once what is free there is given back."""
    import torch

    hardware.reset_peak_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


@contextmanager
def on_device(model: Any, kind: str) -> Iterator[torch.device]:
    """The model on a device of this kind, in evaluation mode; then back: what the method draws next is drawn where it always is."""
    import torch

    home, device = model.device, torch.device(kind)
    model.eval()
    if home.type != device.type:
        model.to(device)
    yield device
    if home.type != device.type:
        model.to(home)
