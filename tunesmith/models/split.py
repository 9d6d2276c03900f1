"""A decoder in two: the layers at its front, which train nothing, and the rest, which begins with what they made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tunesmith.models.joined import join, key_value_heads, may_join, may_share, shared_tokens
from tunesmith.models.virtual import virtual_tokens

if TYPE_CHECKING:
    import torch


def frozen_layers(model: Any) -> int:
    """Layers at the front that train nothing, the embedding before them included; 0 where that is trained."""
    if virtual_tokens(model) or any(p.requires_grad for p in model.get_input_embeddings().parameters()):
        return 0
    layers = _decoder(model).layers
    trained = (n for n, layer in enumerate(layers) if any(p.requires_grad for p in layer.parameters()))
    return next(trained, len(layers))


def not_repeatable(model: Any) -> str | None:
    """Why the front layers would not give the same states every time, or cannot be left out; None where they do."""
    config = model.config.get_text_config()
    if not may_join(model):
        return f"models of type {config.model_type} are not known to be separable"
    if getattr(config, "attention_dropout", 0):
        return f"attention_dropout is {config.attention_dropout}, so no two passes are alike"
    return None


def states_before(model: Any, batch: dict[str, torch.Tensor], entry: int) -> torch.Tensor:
    """What enters layer `entry` for a batch of ids, padded on the right: (B, T, D); padding holds nothing of use.

    A beginning that all rows share is computed once.
    """
    import torch

    from tunesmith.models.attention import take_over_attention

    take_over_attention(model)
    shared = shared_tokens(batch) if may_share(model) else 0
    joined, seen, decoder = join(batch, shared, key_value_heads(model)), [], _decoder(model)
    last = decoder.layers[entry - 1].register_forward_hook(lambda module, given, made: seen.append(made[0]))
    try:
        with torch.no_grad(), _only(decoder, decoder.layers[:entry]):
            decoder(
                input_ids=joined.ids, position_ids=joined.positions, attention_mask=joined.bias, joined=joined,
                use_cache=False,
            )  # fmt: skip
    finally:
        last.remove()
    (states,) = seen  # (N, D)
    return torch.cat([states[:shared].expand(joined.rows, -1, -1), joined.apart(states)], dim=1)


def entry_of(batch: dict[str, torch.Tensor]) -> int:
    """The layer that the states of a batch enter; 0 where it has none."""
    return int(batch["entry"][0]) if "states" in batch else 0


@contextmanager
def entered(model: Any, states: torch.Tensor | None, entry: int) -> Iterator[None]:
    """While it lasts, a forward pass begins at layer `entry` with these states; without states the model stays whole.

    Their shape is that of the embeddings the model would make: (B, T, D), or (1, N, D) for a joined batch.
    """
    if states is None:
        yield
        return
    from torch.nn import Identity, ModuleList

    decoder, front = _decoder(model), Identity()
    front.forward = lambda *_, **__: states  # pyright: ignore[reportAttributeAccessIssue]
    with _only(decoder, ModuleList([front, *decoder.layers[entry:]])):
        yield


@contextmanager
def _only(decoder: Any, layers: Any) -> Iterator[None]:
    whole = decoder.layers
    decoder.layers = layers
    try:
        yield
    finally:
        decoder.layers = whole


def _decoder(model: Any) -> Any:
    """The module that holds the layers."""
    from torch.nn import ModuleList

    return next(module for module in model.modules() if isinstance(getattr(module, "layers", None), ModuleList))
