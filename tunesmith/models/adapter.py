"""Bottleneck adapters as modules: what they compute, where they hang in a decoder, how they are read and written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from tunesmith.core.errors import ModelError
from tunesmith.models.scoring import HEAD

if TYPE_CHECKING:
    from pathlib import Path

NAME = "bottleneck"
ACTIVATIONS = {"relu": functional.relu, "gelu": functional.gelu, "silu": functional.silu}
PARTS = {"mlp": ("mlp",), "attention": ("self_attn", "attn")}
"""The two halves of a decoder block, and what families call them."""


class Adapter(torch.nn.Module):
    """x + up(activation(down(x))): the identity as long as `up` is zero, as it starts."""

    def __init__(self, width: int, size: int, activation: str) -> None:
        super().__init__()
        self.is_off = False
        self.activation = ACTIVATIONS[activation]
        self.down = torch.nn.Linear(width, size)
        self.up = torch.nn.Linear(size, width)
        torch.nn.init.zeros_(self.up.weight)
        torch.nn.init.zeros_(self.up.bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(B, T, D) -> (B, T, D), computed in the adapter's own precision, or autocast's, beside a frozen bf16 base."""
        if self.is_off:
            return states
        change = self.up(self.activation(self.down(states.to(self.down.weight.dtype))))
        return states + change.to(states.dtype)


def blocks(model: Any) -> list[torch.nn.Module]:
    """The decoder blocks of a model. Raises ModelError where they cannot be told."""
    count = model.config.get_text_config().num_hidden_layers
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == count]
    if not lists:
        raise ModelError(
            str(model.config.name_or_path), f"has no list of its {count} blocks, so nothing can stand in them"
        )
    return list(lists[0])


def part(block: torch.nn.Module, half: str) -> torch.nn.Module:
    """The `mlp` or `attention` of a block. Raises ModelError where it has another name."""
    found = [module for name, module in block.named_children() if name in PARTS[half]]
    if not found:
        names = ", ".join(name for name, _ in block.named_children())
        raise ModelError(type(block).__name__, f"has no part named {' or '.join(PARTS[half])}", got=names)
    return found[0]


def hang(places: Sequence[torch.nn.Module], width: int, size: int, activation: str) -> None:
    """Put an adapter behind each of these modules; the modules stay what they are, their output goes through it."""
    for place in places:
        weight = next(place.parameters())
        place.add_module(NAME, Adapter(width, size, activation).to(weight.device))
        place.register_forward_hook(_pass_on)


def _pass_on(place: Any, _: Any, output: Any) -> Any:
    """A hook and no closure, so that the model can be copied."""
    if isinstance(output, tuple):  # attention gives its weights too
        return (place.bottleneck(output[0]), *output[1:])
    return place.bottleneck(output)


def adapters_of(model: Any) -> list[Adapter]:
    """All adapters that hang in a model."""
    return [module for module in model.modules() if isinstance(module, Adapter)]


@contextmanager
def switched_off(adapters: Sequence[Adapter]) -> Iterator[None]:
    """While it lasts the model is the untrained one."""
    for adapter in adapters:
        adapter.is_off = True
    try:
        yield
    finally:
        for adapter in adapters:
            adapter.is_off = False


def adapter_state(model: Any) -> dict[str, torch.Tensor]:
    """The adapters' weights by their names in the model, and a reward model's head, which is trained beside them."""
    state = model.state_dict()
    return {name: value for name, value in state.items() if f".{NAME}." in name or name.startswith(f"{HEAD}.")}


def load_adapters(model: Any, path: Path) -> None:
    """Put saved weights into adapters that hang already. Raises RuntimeError when they do not fit."""
    from safetensors.torch import load_file

    saved, own = load_file(path), adapter_state(model)
    if saved.keys() != own.keys():
        raise RuntimeError(f"holds adapters for other places, first: {min(saved.keys() ^ own.keys())}")
    model.load_state_dict(saved, strict=False)
