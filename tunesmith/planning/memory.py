"""Bytes of a training run by part, before anything is loaded. Knows shapes and methods, neither weights nor data.

A trained parameter costs 16 bytes under AdamW: fp32 weight 4, gradient 4, two moments 8 (others: optimizers.py). The ZeRO paper (arXiv 1910.02054,
section 3.1) has the same 16 for mixed precision with K = 12; here autocast makes the half-precision copies, which are
counted with the activations because the backward pass holds them. Activations: see activations.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from tunesmith.core.artifacts import MemoryPlan
from tunesmith.core.errors import UsageError
from tunesmith.core.hardware import Machine
from tunesmith.models.footprint import Footprint
from tunesmith.models.head import CHUNK, PIECE, is_worth_sharing
from tunesmith.models.joined import LENGTH_STEP
from tunesmith.models.methods import Method
from tunesmith.models.shape import Shape
from tunesmith.planning.activations import Batch, boundary_bytes, joins, layer_bytes, passed_bytes, prefix_bytes
from tunesmith.planning.advise import advise
from tunesmith.planning.optimizers import OptimizerKind, state_bytes

LIBRARIES_BYTES = {"cpu": 470 << 20, "cpu, cuda build": 825 << 20, "cuda": 1 << 30}
"""RSS of a process with torch, transformers, peft and accelerate at work, measured (benchmarks/memory.py) with a torch for the
CPU, then with one for CUDA that finds no GPU; for cuda the context and the allocator's slack, not measured."""
SCATTER = {
    "outputs fp32": 1.9, "outputs bf16": 1.1, "outputs fp32 again": 1.35, "outputs bf16 again": 1.0,
    "quantized fp32": 4.6, "quantized bf16": 2.0, "quantized fp32 again": 3.7, "quantized bf16 again": 1.3,
    "layers fp32": 0.55, "layers bf16": 0.15, "beside": 0.4, "beside again": 0.2,
    "gradients fp32": 1.2, "gradients bf16": 0.5, "gradients fp32 again": 0.4, "gradients bf16 again": 0.4,
}  # fmt: skip
"""What glibc's heap holds beyond what lives, as shares (measured on glibc 2.36, see docs/plan.md): freed pieces that no
later request fits. Adapters: of the outputs of the adapted linears, with `again` when they are recomputed, more where
every product unpacks its weights first; trained weights: of what their layers save and of their gradients; virtual tokens
and bottlenecks beside frozen weights: of what the layers save (fitted in fp32; half of it, unmeasured, when recomputed)."""
VARIED_BYTES = 144 << 20
"""What the heap holds beyond that where rows of their own lengths go through bf16 layers that train nothing, however many:
the code of products, which oneDNN keeps for every shape, parts its pieces (measured on a CPU, decision 005)."""
ADAMW_BYTES = 16
"""A trained number in fp32: weight, gradient, two moments."""
LOSS_BYTES = 12
"""A logit under a trained head: log-softmax kept, the gradient of the loss, the gradient of the logit, all fp32."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A training run to be planned."""

    model: str
    method: Method
    precision: Literal["fp32", "bf16"]
    rows: int
    """Sequences that go through the model together."""
    tokens: int
    """Tokens of the longest of them."""
    lengths: tuple[int, ...] = ()
    """Tokens of each, the shortest first; none: all are as long as the longest."""
    labelled: int | None = None
    """Positions of the largest batch whose logits are computed; None means all."""
    shared: int = 0
    """Tokens at the beginning that all rows share; where nothing forbids it they are computed once."""
    accumulate: int = 1
    """Passes of a step up to this one, whose gradients are added up; from 2 on they live through its forward pass too."""
    each: int = 1
    """Sequences of a row: two of a pair."""
    step_rows: int | None = None
    """Rows of a step; None means those of all its passes."""
    checkpointing: bool | Literal["auto"] = "auto"
    """Recompute activations; auto only where it does not fit without."""
    optimizer: OptimizerKind = "adamw"
    reward_bytes: int = 0
    """Models that score answers, held beside the one that is trained."""
    has_critic: bool = False
    """A value head is trained beside the model: a number for every hidden state."""
    limit_bytes: int | None = None
    """Memory the run may take; None means what the machine has free."""
    is_spread: bool = False
    """Weights are held in pieces by several processes."""

    @property
    def rows_a_step(self) -> int:
        """Rows whose gradients one step adds up."""
        return self.step_rows or self.rows // self.each * self.accumulate


@dataclass(frozen=True, slots=True)
class Parts:
    """Bytes by part, each at its own highest; `overlap_bytes` is what is never held at the same time."""

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    logits_bytes: int
    reward_bytes: int
    overhead_bytes: int
    overlap_bytes: int

    @property
    def total_bytes(self) -> int:
        """The most that is held at one moment."""
        held = self.weights_bytes + self.gradients_bytes + self.optimizer_bytes
        needed = self.activations_bytes + self.logits_bytes + self.reward_bytes + self.overhead_bytes
        return held + needed - self.overlap_bytes


def trained_parameters(shape: Shape, method: Method) -> int:
    """Parameters that get a gradient. Raises UsageError when the method names a part that is not there."""
    return method.footprint(shape).trained


def predict(shape: Shape, wish: Wish, machine: Machine) -> Parts:
    """Bytes by part of one wish; `auto` counts as no checkpointing. Raises UsageError as `trained_parameters` does."""
    device, libraries = (
        machine.device,
        "cpu, cuda build" if machine.cuda_build and not machine.gpu_name else machine.device,
    )
    footprint, bf16, again = wish.method.footprint(shape), wish.precision == "bf16", wish.checkpointing is True
    batch = _batch(shape, wish, footprint, device)
    layer = layer_bytes(shape, footprint, bf16=bf16, batch=batch)
    passed = passed_bytes(shape, footprint, bf16=bf16, batch=batch)
    boundary = boundary_bytes(shape, footprint, bf16=bf16, batch=batch)
    saved = layer * footprint.layers + passed * footprint.passed
    vocabulary = shape.vocabulary * shape.hidden
    kept = (boundary * (footprint.layers + footprint.passed) if again else saved) + 2 * boundary
    kept += 2 * vocabulary if bf16 and footprint.head else 0  # autocast's copy of a trained head
    kept += prefix_bytes(shape, footprint, bf16=bf16, batch=batch)
    activations = kept + (layer if again else 0)
    logits = _logits_bytes(shape, wish, footprint, device)
    gradients = 4 * footprint.trained
    doubled = 4 * vocabulary if footprint.head and footprint.embeddings and shape.tied else 0
    before = gradients if wish.accumulate > 1 else 0
    head = 4 * vocabulary if footprint.head else 0
    peak = max(
        before + kept + logits,  # the loss, before any layer has its gradient
        max(before, head) + activations,  # the last layer's backward pass
        gradients + doubled,  # the end of it: a tied matrix gets its gradient from both sides
    )
    work = 3 * (2 if bf16 else 4) * shape.inner * batch.computed  # gradients inside one layer
    scatter = _scatter(wish, footprint, batch, saved) if device == "cpu" else 0
    scatter += VARIED_BYTES if device == "cpu" and bf16 and batch.lengths and footprint.untouched(shape) else 0
    return Parts(
        weights_bytes=footprint.weights_bytes(shape, wish.precision), gradients_bytes=gradients,
        optimizer_bytes=state_bytes(wish.optimizer, shape, footprint), activations_bytes=activations, logits_bytes=logits,
        reward_bytes=wish.reward_bytes + (ADAMW_BYTES * (shape.hidden + 1) if wish.has_critic else 0),
        overhead_bytes=LIBRARIES_BYTES[libraries] + work + scatter + doubled,
        overlap_bytes=gradients + activations + logits + doubled - peak,
    )  # fmt: skip


def heaviest(shape: Shape, wishes: Iterable[Wish], machine: Machine) -> Wish:
    """Of the wishes of several passes of one run that which takes the most. Raises UsageError as `trained_parameters` does."""
    return max(wishes, key=lambda wish: predict(shape, wish, machine).total_bytes)


def _batch(shape: Shape, wish: Wish, footprint: Footprint, device: str) -> Batch:
    """The batch as models/head.py computes it: a shared beginning once, unless the family or dropout forbids."""
    drawn = shape.attention_dropout or footprint.dropout
    tokens, shared, is_joined = (
        wish.tokens + footprint.virtual,
        wish.shared + footprint.virtual,
        joins(shape, footprint),
    )
    once = is_worth_sharing(shared, tokens) and wish.rows > 1 and is_joined and not drawn
    lengths = tuple(length + footprint.virtual for length in wish.lengths) if is_joined else ()
    return Batch(
        wish.rows, tokens, padded=wish.rows > 1, lengths=lengths, shared=shared if once else 0, on_cpu=device == "cpu",
        step=LENGTH_STEP if is_joined else 1, lean=not wish.is_spread,
    )  # fmt: skip


def _logits_bytes(shape: Shape, wish: Wish, footprint: Footprint, device: str) -> int:
    """Under a frozen head CHUNK tokens exist at a time, in the precision of the product, and fp32 copies of a piece of them."""
    positions = wish.rows * wish.tokens if wish.labelled is None else wish.labelled
    if joins(shape, footprint) and not footprint.head:
        alive = min(positions, CHUNK)
        copied = min(alive, PIECE if device == "cpu" else CHUNK) if wish.precision == "bf16" else 0
        return ((2 if copied else 4) * alive + 4 * copied) * shape.vocabulary
    return LOSS_BYTES * positions * shape.vocabulary


def _scatter(wish: Wish, footprint: Footprint, batch: Batch, saved_bytes: int) -> int:
    """Bytes of the heap between what lives; `saved_bytes` is what all layers save, recomputed or not."""
    again = " again" if wish.checkpointing is True else ""
    outputs = sum(linear.outputs for linear in footprint.adapted) * (2 if wish.precision == "bf16" else 4)
    kind = "quantized" if footprint.quantized else "outputs"
    adapters = SCATTER[f"{kind} {wish.precision}{again}"] * outputs * batch.computed
    layers = SCATTER[f"layers {wish.precision}"] * saved_bytes if footprint.trained_linears else 0
    if not footprint.adapted and not footprint.masters:
        layers = SCATTER[f"beside{again}"] * saved_bytes
    return round(adapters + layers + SCATTER[f"gradients {wish.precision}{again}"] * 4 * footprint.masters)


def plan_memory(shape: Shape, wish: Wish, machine: Machine) -> MemoryPlan:
    """Bytes by part at the largest batch, whether they fit `machine`, and if not the smallest change that makes them fit.

    `available_bytes` is the limit of the wish or, without one, what the machine has free.
    Raises UsageError when the method targets a linear layer that the model does not have, or recomputing is asked of a
    method that cannot.
    """
    available, recomputes = wish.limit_bytes or machine.training_bytes, wish.method.footprint(shape).recomputes
    if wish.checkpointing is True and not recomputes:
        raise UsageError(
            "memory.checkpointing", f"method {wish.method.kind} keeps its keys in a cache, which recomputing leaves out",
            got="on", do="Use auto or off",
        )  # fmt: skip

    def total(asked: Wish) -> int:
        return predict(shape, asked, machine).total_bytes

    chosen = wish
    if wish.checkpointing == "auto":
        plain = replace(wish, checkpointing=False)
        chosen = plain if total(plain) <= available or not recomputes else replace(wish, checkpointing=True)
    parts = predict(shape, chosen, machine)
    fits = parts.total_bytes <= available
    return MemoryPlan(
        model=wish.model, method=wish.method.kind, precision=wish.precision, parameters=shape.parameters,
        trainable_parameters=trained_parameters(shape, wish.method), weights_bytes=parts.weights_bytes,
        gradients_bytes=parts.gradients_bytes, optimizer_bytes=parts.optimizer_bytes,
        activations_bytes=parts.activations_bytes, logits_bytes=parts.logits_bytes,
        reward_bytes=parts.reward_bytes, overhead_bytes=parts.overhead_bytes, overlap_bytes=parts.overlap_bytes, total_bytes=parts.total_bytes,
        available_bytes=available, device=machine.device, fits=fits, checkpointing=chosen.checkpointing is True,
        advice="" if fits else advise(chosen, lambda changed: total(changed) <= available, recomputes=recomputes), seconds_per_epoch=None,
        seconds_per_further_epoch=None,
    )  # fmt: skip
