"""Bytes a process holds where weights, gradients and optimizer are spread over several, and the layout that fits.

The public arithmetic of ZeRO, and ours, which has fp32 weights throughout. Knows no library that spreads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from tunesmith.core.artifacts import MemoryPlan
from tunesmith.core.hardware import Machine
from tunesmith.models.shape import Shape
from tunesmith.planning.advise import advise
from tunesmith.planning.memory import Parts, Wish, predict, trained_parameters

Stage = Annotated[Literal[0, 1, 2, 3], "0 nothing is spread, 1 optimizer, 2 and gradients, 3 and weights"]
ADAM_BYTES = 12
"""K of the ZeRO paper: fp32 weight, momentum and variance beside half-precision weight and gradient (2 + 2 + 12 = 16)."""
BUCKET = 50_000_000
"""Elements that are exchanged at a time: 200 MB in fp32."""
LIVE = 100_000_000
"""Parameters that stage 3 keeps whole at a time, for those that come next."""


def model_bytes(parameters: int, bytes_each: int = 2) -> int:
    """Bytes of a model's weights: 7e9 parameters in fp16 are 13.04 GiB."""
    return parameters * bytes_each


def zero_bytes(parameters: int, devices: int, stage: Stage, optimizer_bytes: int = ADAM_BYTES) -> float:
    """Bytes a device holds for weights, gradients and optimizer in mixed-precision Adam.

    ZeRO, arXiv 1910.02054, figure 1: (2 + 2 + K) P; K P / N; (2 + K) P / N; (2 + 2 + K) P / N. Activations not counted.
    """
    weights = 2 * parameters / (devices if stage >= 3 else 1)
    gradients = 2 * parameters / (devices if stage >= 2 else 1)
    return weights + gradients + optimizer_bytes * parameters / (devices if stage >= 1 else 1)


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to hold a training run in several processes."""

    kind: Literal["ddp", "zero", "fsdp"]
    stage: Stage = 0
    offload: Literal["none", "optimizer", "all"] = "none"

    @property
    def name(self) -> str:
        """As a person says it: `ddp`, `zero 2`, `zero 2 + offload`."""
        beside = {"none": "", "optimizer": " + offload", "all": " + offload of all"}[self.offload]
        return f"zero {self.stage}{beside}" if self.kind == "zero" else self.kind

    @property
    def spreads_weights(self) -> bool:
        """Whether a process holds a share of every weight only."""
        return self.kind == "fsdp" or self.stage == 3


FASTEST_FIRST = (
    Layout("ddp"), Layout("zero", 1), Layout("zero", 2), Layout("zero", 2, "optimizer"), Layout("zero", 3),
    Layout("zero", 3, "all"),
)  # fmt: skip
"""What stage auto tries, in this order: each one sends more between processes, or to the CPU, than the one before."""


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes by part in one process."""

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    exchange_bytes: int
    """What is on its way: the bucket of gradients, and under stage 3 and fsdp the weights that are whole for a moment."""
    host_bytes: int
    """Of a GPU run: what lies in CPU memory."""


def held_by(layout: Layout, parts: Parts, shape: Shape, trained: int, processes: int) -> Held:
    """What a process holds of a run whose parts in one process are `parts`; offload counts as if CPU memory were another.

    DDP's gradients live in its buckets all the time. DeepSpeed keeps an fp32 copy of trained weights beside the moments
    (4 + 8 bytes, of which stage 1 and 2 hold a part), and a bucket; stage 3 and fsdp spread weights, frozen ones too, of
    which a few are whole at a time.
    """
    weights, gradients, optimizer = parts.weights_bytes, parts.gradients_bytes, parts.optimizer_bytes
    if layout.kind == "ddp":
        return Held(weights, gradients, optimizer, 0, 0)
    if layout.kind == "zero":
        optimizer = (optimizer + 4 * trained) // (processes if layout.stage else 1)
        gradients //= processes if layout.stage > 1 else 1
    else:
        optimizer, gradients = optimizer // processes, gradients // processes
    bucket = 4 * min(trained, BUCKET)
    if layout.spreads_weights:
        whole = min(shape.parameters, max(shape.vocabulary * shape.hidden, LIVE))
        bucket += weights * whole // shape.parameters
        weights //= processes
    host = 0
    if layout.offload != "none":
        host, optimizer, gradients = optimizer + gradients, 0, 0
    if layout.offload == "all":
        host, weights = host + weights, 0
    return Held(weights, gradients, optimizer, bucket, host)


@dataclass(frozen=True, slots=True)
class Laid:
    """A layout with what each process would hold under it."""

    layout: Layout
    plan: MemoryPlan
    host_bytes: int

    @property
    def line(self) -> str:
        """One row of the table."""
        verdict = "fits" if self.plan.fits else "does not fit"
        beside = f" and {self.host_bytes / 2**30:.2f} GiB of CPU memory" if self.host_bytes else ""
        return f"  {self.layout.name:<26}{self.plan.total_bytes / 2**30:>8.2f} GiB a process{beside}  {verdict}"


def lay_out(shape: Shape, wish: Wish, machine: Machine, processes: tuple[int, int], layout: Layout) -> Laid:
    """The plan of one process of a run that is laid out so; `processes` are those on this machine and all.

    Processes on one CPU share its memory, and offload moves nothing there. Each process has a GPU of its own.
    """
    here, total = processes
    wish = replace(wish, is_spread=layout.spreads_weights)
    parts, trained = predict(shape, wish, machine), trained_parameters(shape, wish.method)
    held, on_cpu = held_by(layout, parts, shape, trained, total), machine.device == "cpu"
    if on_cpu:
        held = replace(held, optimizer_bytes=held.optimizer_bytes + held.host_bytes, host_bytes=0)
    overhead = parts.overhead_bytes + held.exchange_bytes
    mine = held.weights_bytes + held.gradients_bytes + held.optimizer_bytes
    needed = mine + parts.activations_bytes + parts.logits_bytes + parts.reward_bytes + overhead
    available = wish.limit_bytes or machine.training_bytes // (here if on_cpu else 1)
    fits = needed <= available and held.host_bytes <= machine.available_bytes // here
    plan = MemoryPlan(
        model=wish.model, method=wish.method.kind, precision=wish.precision, parameters=shape.parameters,
        trainable_parameters=trained, weights_bytes=held.weights_bytes, gradients_bytes=held.gradients_bytes,
        optimizer_bytes=held.optimizer_bytes, activations_bytes=parts.activations_bytes,
        logits_bytes=parts.logits_bytes, reward_bytes=parts.reward_bytes, overhead_bytes=overhead, overlap_bytes=0, total_bytes=needed,
        available_bytes=available, device=machine.device, fits=fits, checkpointing=wish.checkpointing is True,
        advice="", seconds_per_epoch=None, seconds_per_further_epoch=None,
    )  # fmt: skip
    return Laid(layout, plan, held.host_bytes)


def choose_layout(
    shape: Shape, wish: Wish, machine: Machine, processes: tuple[int, int], layouts: Sequence[Layout]
) -> tuple[Laid, list[str]]:
    """The first of `layouts` that fits, without recomputed activations if any does; the table of all, and why this one.

    Where none fits, the last one, with advice.
    """
    recomputes = wish.method.footprint(shape).recomputes
    tries = [False, True] if wish.checkpointing == "auto" and recomputes else [wish.checkpointing is True]
    laid: list[Laid] = []
    for again in tries:
        laid = [lay_out(shape, replace(wish, checkpointing=again), machine, processes, layout) for layout in layouts]
        fitting = [one for one in laid if one.plan.fits]
        if fitting:
            return fitting[0], _table(laid, fitting[0])

    def fits(changed: Wish) -> bool:
        return lay_out(shape, changed, machine, processes, layouts[-1]).plan.fits

    last = replace(wish, checkpointing=tries[-1])
    advice = advise(last, fits, recomputes=recomputes)
    chosen = replace(laid[-1], plan=replace(laid[-1].plan, advice=advice))
    return chosen, _table(laid, None)


def _table(laid: list[Laid], chosen: Laid | None) -> list[str]:
    if len(laid) == 1:
        return []
    lines = ["layouts, the fastest first", *(one.line for one in laid)]
    if chosen is None:
        return [*lines, "chosen    none fits"]
    before = [one.layout.name for one in laid[: laid.index(chosen)]]
    why = f"{', '.join(before)} {'does' if len(before) == 1 else 'do'} not fit" if before else "the fastest fits"
    return [*lines, f"chosen    {chosen.layout.name}: {why}"]
