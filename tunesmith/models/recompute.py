"""Activation checkpointing: what a layer saves is computed again in the backward pass. Knows no method."""

from __future__ import annotations

from typing import Any


def recompute_activations(model: Any) -> None:
    """Keep only the states between layers, and those only where a gradient goes.

    transformers gives the embedding's output a gradient, which the older kind of checkpointing needs; it would take the
    backward pass through frozen layers that train nothing.
    """
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.disable_input_require_grads()
