"""Freeze tuning: the last layers, or parts of them, are trained; the rest stays as it is and needs no backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from tunesmith.core.config import Config
from tunesmith.core.errors import UsageError
from tunesmith.models.depth import known
from tunesmith.models.footprint import Footprint

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from tunesmith.models.load import PRECISIONS, Found
    from tunesmith.models.shape import Shape


Modules = Annotated[
    Literal["all"] | tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) and value != "all" else value),
]


class Freeze(Config):
    """The last layers are trained, all before them frozen; 16 bytes for each trained parameter, 2 or 4 for the others."""

    kind: Literal["freeze"] = "freeze"
    """The last layers are trained, all before them frozen."""
    layers: Annotated[int, Field(ge=0)] | Literal["auto"] = 2
    """How many of the last decoder layers are trained; 0 trains only what `extra` names, auto tries a few depths before the
    first step and says what each costs."""
    modules: Modules = "all"
    """What is trained inside these layers: all, or a list of names: mlp, self_attn, a linear layer, a norm."""
    extra: tuple[str, ...] = ()
    """Parts outside the layers that are trained too: lm_head, embed_tokens, norm. A tied model has one matrix for
    embed_tokens and lm_head: naming either trains both. A trained embedding takes the backward pass through all layers."""

    def footprint(self, shape: Shape) -> Footprint:
        """What planning has to know. Raises UsageError for parts that the model does not have."""
        from tunesmith.models.parts import choose, layer_parts, trained_outside

        depth = self._depth(shape.layers)
        outside, parts = trained_outside(shape, self.extra, "method.extra"), layer_parts(shape)
        chosen = set(parts if self.modules == "all" else choose(parts, self.modules, "method.modules"))
        masters = depth * sum(parts[path] for path in chosen) + sum(outside.values())
        embeddings = any("embed_tokens" in path or ".wte" in path or ".wpe" in path for path in outside)
        linears = (*shape.attention, *shape.mlp)
        return Footprint(
            masters=masters, replaced=masters, layers=depth, passed=shape.layers - depth if embeddings else 0,
            trained_linears=tuple(linear for linear in linears if linear.name in chosen) if depth else (),
            norms=any("layernorm" in path or "ln_" in path for path in chosen),
            head_norms=any(path.endswith(("q_norm", "k_norm")) for path in chosen),
            embeddings=embeddings, head="lm_head" in outside or (embeddings and shape.tied),
        )  # fmt: skip

    def load(self, found: Found, precision: PRECISIONS) -> PreTrainedModel:
        """The base in `precision`, what will be trained in fp32 with the very numbers of its files."""
        from tunesmith.models.load import load_model
        from tunesmith.models.overlay import take_stored
        from tunesmith.models.scoring import new_parameters

        model = load_model(found, precision)
        if precision != "fp32":
            trained = {id(p) for p in self._trained(model)} - {id(p) for p in new_parameters(model)}
            take_stored(model, found, [name for name, p in model.named_parameters() if id(p) in trained])
        return model

    def put(self, model: PreTrainedModel) -> Any:
        """Return the model with the chosen parameters trainable, as fp32 master weights.

        Raises UsageError for more layers than there are, a name that no part has, or when nothing would be trained.
        """
        trained = self._trained(model)
        model.requires_grad_(requires_grad=False)
        for parameter in trained:
            parameter.data = parameter.data.float()
            parameter.requires_grad = True
        return model

    def _trained(self, model: PreTrainedModel) -> list[Any]:
        from tunesmith.models.parts import choose, split_parts
        from tunesmith.models.scoring import new_parameters

        layers, outside = split_parts(model)
        depth = self._depth(len(layers))
        modules = [outside[path] for path in choose(outside, self.extra, "method.extra")]
        for layer in layers[len(layers) - depth :]:
            inside = layer if self.modules == "all" else choose(layer, self.modules, "method.modules")
            modules += [layer[path] for path in inside]
        return [*new_parameters(model), *(p for module in modules for p in module.parameters(recurse=False))]

    def _depth(self, layers: int) -> int:
        """Trained ones of `layers`. Raises UsageError for more than there are, or when nothing would be trained."""
        own = known(self.layers)
        depth = layers if own is None else own
        if depth > layers:
            raise UsageError("method.layers", f"the model has {layers} layers", got=depth, do="Take fewer")
        if not self.extra and not (depth and self.modules):
            raise UsageError("method", "trains nothing", do="Give --method.layers, or --method.extra '[lm_head]'")
        return depth

    def usual_rate(self, shape: Shape) -> float:
        """The learning rate with which answers are learned where nothing else is said."""
        return 5e-5 * shape.rate_by_width

    def rate_factor(self, name: str) -> float:  # noqa: ARG002 - every method has it
        """Every parameter learns at the rate of the schedule."""
        return 1.0

    def save(self, model: Any, folder: Path) -> None:
        """Write what was trained, and only that: the frozen weights stay exactly those of the base."""
        from tunesmith.models.overlay import write_overlay

        write_overlay(model, folder)

    def restore(self, model: Any, folder: Path) -> None:
        """Put saved weights back into a model that `put` returned. Bit for bit."""
        from tunesmith.models.overlay import put_overlay

        put_overlay(model, folder)
