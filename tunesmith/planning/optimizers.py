"""Bytes that an optimizer keeps between steps. Knows no other part of a run."""

from __future__ import annotations

from typing import Literal

from tunesmith.models.footprint import Footprint
from tunesmith.models.shape import Shape

OptimizerKind = Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "muon"]


def state_bytes(kind: OptimizerKind, shape: Shape, footprint: Footprint) -> int:
    """Bytes of state for what is trained, in fp32.

    AdamW keeps two moments; eight-bit ones share an fp32 scale among 256; Adafactor keeps a row and a column of every
    matrix, at most as many numbers as two of its shorter sides allow; Muon keeps one moment of the matrices inside the
    layers and AdamW's two of the rest.
    """
    trained = footprint.trained
    if kind == "adafactor":
        sides = 2 * footprint.masters / shape.hidden
        return round(4 * (sides + footprint.adapters * (1 / (footprint.rank or shape.hidden) + 1 / shape.hidden)))
    if kind == "muon":
        head = shape.head_parameters if footprint.head else 0
        return 4 * (trained + head + (shape.embedding_parameters if footprint.embeddings else 0))
    return 8 * trained if kind == "adamw" else 2 * trained + 2 * 4 * trained // 256
