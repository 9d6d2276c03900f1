"""Bytes a device under ZeRO: the public arithmetic of weights, gradients and optimizer spread over devices."""

from __future__ import annotations

from typing import Annotated, Literal

Stage = Annotated[Literal[0, 1, 2, 3], "0 nothing is spread, 1 optimizer, 2 and gradients, 3 and weights"]
ADAM_BYTES = 12
"""K of the ZeRO paper: fp32 weight, momentum and variance beside half-precision weight and gradient (2 + 2 + 12 = 16)."""


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
