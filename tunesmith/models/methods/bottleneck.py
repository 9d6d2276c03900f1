"""Bottleneck adapters: a small network behind the feed-forward layer of every block (Houlsby et al. 2019, arXiv 1902.00751)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from tunesmith.core import files
from tunesmith.core.config import Config
from tunesmith.core.errors import UsageError
from tunesmith.models.depth import LastLayers, known
from tunesmith.models.footprint import Footprint

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from tunesmith.models.load import PRECISIONS, Found
    from tunesmith.models.shape import Shape

SHARE = 0.05
"""Most parameters an adapter may have, as a share of the model's; the paper needs 3.6 %."""
WIDEST = 64
"""Width that is taken where none is asked for, the paper's best on GLUE."""
FORMAT = "tunesmith_method"
"""The key of adapter_config.json by which our own adapters are known."""


class Bottleneck(Config):
    """Small networks behind the blocks' layers, at most 5 % of the parameters; a learning rate of about 0.001."""

    kind: Literal["bottleneck"] = "bottleneck"
    """Small networks behind the feed-forward layer of every block."""
    size: Annotated[int, Field(ge=1)] | None = None
    """Width of the bottleneck; null takes 64, or what stays within 5 % of the model's parameters."""
    activation: Literal["relu", "gelu", "silu"] = "gelu"
    """Non-linearity between the two projections."""
    after: Literal["mlp", "both"] = "mlp"
    """Where an adapter stands: behind the feed-forward layer, or behind attention too as in the paper."""
    last_layers: LastLayers = None
    """Adapters in the last so many layers only, so that those before need no backward pass; null takes all, auto tries a
    few depths before the first step."""

    def footprint(self, shape: Shape) -> Footprint:
        """What planning has to know. Raises UsageError as `put` does."""
        depth = self.depth(shape.layers)
        size = self.width(shape.parameters, shape.hidden, shape.layers)
        places = depth * len(self.halves)
        return Footprint(
            adapters=places * (2 * shape.hidden * size + shape.hidden + size), layers=depth,
            bottlenecks=len(self.halves), bottleneck_size=size, bottleneck_middles=1 if self.activation == "relu" else 2,
        )  # fmt: skip

    def load(self, found: Found, precision: PRECISIONS) -> PreTrainedModel:
        """The base in `precision`; it stays frozen in it."""
        from tunesmith.models.load import load_model

        return load_model(found, precision)

    def put(self, model: PreTrainedModel) -> Any:
        """Return the same model: base frozen in its precision, adapters trainable in fp32 and without effect yet.

        Raises UsageError for more parameters than 5 % or more layers than there are, ModelError for blocks of an
        unknown build.
        """
        from tunesmith.models import adapter
        from tunesmith.models.scoring import head_of, task_of

        config = model.config.get_text_config()
        layers, width = config.num_hidden_layers, config.hidden_size
        size = self.width(sum(parameter.numel() for parameter in model.parameters()), width, layers)
        chosen = adapter.blocks(model)[-self.depth(layers) :]
        model.requires_grad_(False)
        if task_of(model) == "SEQ_CLS":
            head_of(model).requires_grad_(True)
        adapter.hang(
            [adapter.part(block, half) for block in chosen for half in self.halves], width, size, self.activation
        )
        return model

    @property
    def halves(self) -> tuple[str, ...]:
        """The halves of a block that an adapter stands behind."""
        return ("attention", "mlp") if self.after == "both" else ("mlp",)

    def depth(self, layers: int) -> int:
        """Blocks with adapters in a model of `layers`. Raises UsageError where it has no `last_layers`."""
        last = known(self.last_layers)
        if (last or 0) > layers:
            raise UsageError(
                "method.last_layers", f"the model has {layers} layers", got=self.last_layers, do="Leave it out for all"
            )
        return last or layers

    def width(self, parameters: int, hidden: int, layers: int) -> int:
        """The size asked for, or the one that null means. Raises UsageError for more than 5 % of `parameters`."""
        room = int(SHARE * parameters / (self.depth(layers) * len(self.halves)))  # parameters of one adapter
        most = (room - hidden) // (2 * hidden + 1)
        if (self.size or 1) > most:
            do = (
                f"Take at most {most}"
                if most > 0
                else "Adapters in fewer places (method.after, method.last_layers) may fit"
            )
            raise UsageError(
                "method.size", f"makes adapters of more than {SHARE:.0%} of the model's {parameters} parameters",
                got=self.size or 1, do=do,
            )  # fmt: skip
        return self.size or min(WIDEST, most)

    def usual_rate(self, shape: Shape) -> float:  # noqa: ARG002 - every method has it
        """The learning rate with which answers are learned where nothing else is said."""
        return 1e-3

    def rate_factor(self, name: str) -> float:  # noqa: ARG002 - every method has it
        """Every parameter learns at the rate of the schedule."""
        return 1.0

    def save(self, model: Any, folder: Path) -> None:
        """Write adapter_model.safetensors and an adapter_config.json of our own: peft knows no such adapter."""
        from safetensors.torch import save_file

        from tunesmith.models.adapter import adapter_state
        from tunesmith.models.scoring import task_of

        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.detach().cpu().contiguous() for name, value in adapter_state(model).items()}
        save_file(state, folder / "adapter_model.safetensors")
        size = next(value.shape[0] for name, value in state.items() if name.endswith(".down.weight"))
        about = {
            FORMAT: self.kind, "base_model_name_or_path": model.name_or_path, "task_type": task_of(model),
        }  # fmt: skip
        files.write_json(folder / "adapter_config.json", {**about, **self.model_dump(exclude={"kind"}), "size": size})

    def restore(self, model: Any, folder: Path) -> None:
        """Put saved adapters back into a model that `put` returned. Bit for bit."""
        from tunesmith.models.adapter import load_adapters

        load_adapters(model, folder / "adapter_model.safetensors")


def put_saved(model: Any, folder: Path, config: dict[str, Any]) -> Any:
    """Put the adapters of a folder, whose adapter_config.json says `config`, on a base model.

    Raises ValueError or RuntimeError where they do not fit it.
    """
    wish = {name: config[name] for name in ("size", "activation", "after", "last_layers") if name in config}
    method = Bottleneck(**wish)
    method.restore(method.put(model), folder)
    return model.requires_grad_(False)
