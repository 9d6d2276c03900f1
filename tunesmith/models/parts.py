"""Parts of a decoder by name: inside its layers and outside of them. Knows which exist and how large, not who trains them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UsageError

if TYPE_CHECKING:
    from tunesmith.models.shape import Shape

_NORMS = {
    2: ("input_layernorm", "post_attention_layernorm"),
    4: ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
}


def layer_parts(shape: Shape) -> dict[str, int]:
    """Path inside one layer -> parameters, of every part that holds weights."""
    parts = {linear.name: linear.parameters for linear in (*shape.attention, *shape.mlp)}
    if shape.family == "gpt2":
        return parts | dict.fromkeys(("ln_1", "ln_2"), 2 * shape.hidden)
    if shape.head_norms:
        parts |= dict.fromkeys(("self_attn.q_norm", "self_attn.k_norm"), shape.head_size)
    return parts | dict.fromkeys(_NORMS[shape.norms], shape.hidden)


def outer_parts(shape: Shape) -> dict[str, int]:
    """Path -> parameters, of the parts outside the layers; a tied output head has those of the embedding."""
    hidden, vocabulary = shape.hidden, shape.vocabulary * shape.hidden
    if shape.family == "gpt2":
        positions = {"transformer.wpe": shape.positions * hidden, "transformer.ln_f": 2 * hidden}
        return {"transformer.wte": vocabulary, **positions, "lm_head": vocabulary}
    return {"model.embed_tokens": vocabulary, "model.norm": hidden, "lm_head": vocabulary}


def trained_outside(shape: Shape, names: Iterable[str], where: str) -> dict[str, int]:
    """The outer parts with these names -> parameters that get a gradient: what is tied counts once, under its embedding.

    Raises UsageError for a name that is not there.
    """
    parts = outer_parts(shape)
    embedding = next(iter(parts))
    found = {embedding if path == "lm_head" and shape.tied else path for path in choose(parts, names, where)}
    return {path: parts[path] for path in parts if path in found}


def choose(paths: Collection[str], names: Iterable[str], where: str) -> list[str]:
    """The paths that one of the names says: the path itself, its end, or a module around it (`mlp`).

    Raises UsageError with the known names for one that says nothing.
    """
    chosen: set[str] = set()
    for name in names:
        found = {path for path in paths if f".{name}." in f".{path}."}
        if not found:
            words = sorted({word for path in paths for word in path.split(".") if not word.isdigit()})
            raise UsageError(where, "names no such part of this model", got=name, do=f"Known: {', '.join(words)}")
        chosen |= found
    return [path for path in paths if path in chosen]


def split_parts(model: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The modules with weights of their own: of every layer (path inside it -> module), and outside (path -> module).

    `model` is one of transformers, before anything is put on it.
    """
    count = model.config.get_text_config().num_hidden_layers
    named = {name: module for name, module in model.named_modules() if type(module).__name__ == "ModuleList"}
    prefix = next(name for name, module in named.items() if len(module) == count)
    leaves = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if any(True for _ in module.parameters(recurse=False))
    }
    layers = [_below(leaves, f"{prefix}.{number}.") for number in range(count)]
    return layers, {name: module for name, module in leaves.items() if not name.startswith(f"{prefix}.")}


def _below(leaves: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): module for name, module in leaves.items() if name.startswith(prefix)}
