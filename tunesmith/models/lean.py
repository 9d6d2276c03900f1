"""What a decoder's modules compute, in fewer passes over memory: adapters, norms and gated MLPs while they are trained.

Forward and backward are written out, so that nothing is made or kept that no gradient needs. RunLoRA (arXiv 2312.03415)
and Liger (arXiv 2410.10989) do the same with kernels of their own; here they are torch's products and sums.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch.autograd import Function
from torch.nn.functional import silu


def make_lean(model: Any) -> None:
    """Let the modules of a model compute leanly whose way is known; the others stay as they are. Twice is as once.

    Not for weights that are spread over processes: an adapter's are read beside its modules, not through them.
    """
    from peft.tuners.lora import Linear

    for module in model.modules():
        if isinstance(module, Linear):
            module.forward = MethodType(_adapted, module)
        elif _is_gated(module):
            module.forward = MethodType(_gated, module)
        elif type(module).__name__.endswith("RMSNorm") and (style := _style(module)):
            module.forward = MethodType(_NORMS[style], module)


def _adapted(module: Any, states: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
    """In place of the forward of peft's Linear, and that one where it does more than add one adapter."""
    name = _adapter_of(module, states)
    if name is None or others or options:
        return type(module).forward(module, states, *others, **options)
    base, down, up = module.base_layer, module.lora_A[name].weight, module.lora_B[name].weight
    return AdaptedLinear.apply(states, base.weight, base.bias, down, up, module.scaling[name])  # pyright: ignore[reportReturnType]


def _adapter_of(module: Any, states: torch.Tensor) -> str | None:
    """The one adapter that is added to a plain product of one precision; None where it is otherwise."""
    if module.disable_adapters or module.merged or len(module.active_adapters) != 1:
        return None
    (name,), base = module.active_adapters, module.base_layer
    if type(base) is not torch.nn.Linear or base.weight.requires_grad or base.weight.dtype != _precision(states):
        return None
    drops = module.training and isinstance(module.lora_dropout[name], torch.nn.Dropout)
    return None if drops or name in module.lora_variant or module.lora_bias[name] else name


def _precision(states: torch.Tensor) -> torch.dtype:
    kind = states.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype


class AdaptedLinear(Function):
    """x W' + b + scale (x A') B' with frozen W and b: the adapter's part is added into the product itself.

    x (..., I), W (O, I), b (O,), A (R, I), B (O, R) -> (..., O) in the precision of W. Kept: x, scale x A', and A and B in
    that precision.
    """

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, down: torch.Tensor,
        up: torch.Tensor, scale: float,
    ) -> torch.Tensor:  # fmt: skip
        kind = weight.dtype
        rows, low, high = states.reshape(-1, states.shape[-1]).to(kind), down.to(kind), up.to(kind)
        middle = (rows @ low.T).mul_(scale)
        made = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
        made.addmm_(middle, high.T)
        ctx.save_for_backward(rows, middle, weight, low, high)
        ctx.scale, ctx.like = scale, (states.shape, states.dtype)
        return made.view(*states.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, middle, weight, low, high = ctx.saved_tensors
        shape, kind = ctx.like
        gradient = outer[0].reshape(-1, outer[0].shape[-1])
        inner = (gradient @ high).mul_(ctx.scale)
        to_states = None
        if ctx.needs_input_grad[0]:
            to_states = (gradient @ weight).addmm_(inner, low).view(shape).to(kind)
        return to_states, None, None, (inner.T @ rows).float(), (middle.T @ gradient).T.float(), None


def _llama_norm(module: Any, states: torch.Tensor) -> torch.Tensor:
    return RmsNorm.apply(states, module.weight, _epsilon(module), False)  # pyright: ignore[reportReturnType]


def _gemma_norm(module: Any, states: torch.Tensor) -> torch.Tensor:
    return RmsNorm.apply(states, module.weight, _epsilon(module), True)  # pyright: ignore[reportReturnType]


_NORMS: dict[str, Any] = {"llama": _llama_norm, "gemma": _gemma_norm}
"""Rounded, then times the weight; or times one plus the weight, then rounded."""


def _epsilon(module: Any) -> float:
    return module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps


def _style(module: Any) -> str | None:
    """Which of the known norms a module is: the one that answers as it does."""
    weight = getattr(module, "weight", None)
    if weight is None or not (hasattr(module, "variance_epsilon") or hasattr(module, "eps")):
        return None
    probe = torch.linspace(-2, 3, 2 * len(weight), device=weight.device, dtype=weight.dtype).view(2, -1)
    with torch.no_grad():
        wanted = type(module).forward(module, probe)
        near = 1e-5 if weight.dtype == torch.float32 else 2e-2
        return next((s for s in _NORMS if torch.allclose(_NORMS[s](module, probe), wanted, rtol=near, atol=near)), None)


class RmsNorm(Function):
    """x / rms(x) times w (rounded to x's precision first), or times 1 + w in fp32 and rounded then (arXiv 1910.07467).

    x (..., D), w (D,). Kept: x and 1 / rms(x).
    """

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, weight: torch.Tensor, epsilon: float, is_gemma: bool) -> torch.Tensor:
        whole = states.float()
        squares = torch.linalg.vector_norm(whole, dim=-1, keepdim=True).square_()
        inverse = squares.div_(states.shape[-1]).add_(epsilon).rsqrt_()
        normed = whole * inverse if whole is states else whole.mul_(inverse)
        ctx.save_for_backward(states, inverse, weight)
        ctx.is_gemma = is_gemma
        if is_gemma:
            return normed.mul_(1 + weight.float()).to(states.dtype)
        return normed.to(states.dtype) * weight

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, inverse, weight = ctx.saved_tensors
        normed, gradient = states.float() * inverse, outer[0].float()
        to_weight = None
        if ctx.needs_input_grad[1]:
            seen = normed if ctx.is_gemma else normed.to(states.dtype).float()
            to_weight = (gradient * seen).flatten(0, -2).sum(dim=0).to(weight.dtype)
        if not ctx.needs_input_grad[0]:
            return None, to_weight, None, None
        gradient = gradient * (1 + weight.float() if ctx.is_gemma else weight.float())
        along = torch.linalg.vecdot(gradient, normed).unsqueeze(-1).div_(states.shape[-1])
        return gradient.sub_(normed.mul_(along)).mul_(inverse).to(states.dtype), to_weight, None, None


def _is_gated(module: Any) -> bool:
    """Whether a module is down(silu(gate(x)) * up(x))."""
    from transformers.activations import SiLUActivation

    parts = ("gate_proj", "up_proj", "down_proj", "act_fn")
    return all(hasattr(module, name) for name in parts) and isinstance(module.act_fn, SiLUActivation | torch.nn.SiLU)


def _gated(module: Any, states: torch.Tensor) -> torch.Tensor:
    return module.down_proj(SiluGate.apply(module.gate_proj(states), module.up_proj(states)))


class SiluGate(Function):
    """silu(gate) * up, elementwise (arXiv 2002.05202). Kept: both, and not silu(gate)."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        to_gate = torch.ops.aten.silu_backward(outer[0] * up, gate)
        return to_gate, silu(gate).mul_(outer[0])
