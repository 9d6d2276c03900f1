"""LoRA: low-rank matrices beside frozen linear layers, W + scale * B A (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from tunesmith.core.config import Config
from tunesmith.core.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel


class Lora(Config):
    """Low-rank adapters beside frozen weights; small files, little memory."""

    kind: Literal["lora"] = "lora"
    """Low-rank adapters beside frozen weights."""
    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank r of the two matrices; more rank, more capacity and memory."""
    alpha: Annotated[int, Field(ge=1)] = 32
    """The update is scaled by alpha / rank (with rslora by alpha / sqrt(rank))."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the input of the adapters while training."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Which linear layers get an adapter: all-linear (every one but the output head) or a list of module names."""
    last_layers: Annotated[int, Field(ge=1)] | None = None
    """Adapters in the last so many layers only: the layers before need no backward pass, which saves time and memory and
    usually costs some quality; null takes all."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank), which keeps high ranks stable (arXiv 2312.03732)."""
    plus_ratio: Annotated[float, Field(ge=1, le=64)] = 1.0
    """LoRA+ (arXiv 2402.12354): learning rate of the B matrices as a multiple of the schedule's. The paper takes 16 with
    a learning rate that suits A; 1 trains both alike."""
    dora: bool = False
    """Train the length of every weight row beside its direction (DoRA, arXiv 2402.09353); slower, sometimes better."""

    def put(self, model: PreTrainedModel) -> Any:
        """Return a peft model: base frozen in its precision, adapters trainable in fp32.

        Raises UsageError when no module has one of the names in `targets`.
        """
        from peft import LoraConfig, get_peft_model

        from tunesmith.models.scoring import task_of

        self._check_targets(model)
        layers = model.config.get_text_config().num_hidden_layers
        self.check_layers(layers)
        config = LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, use_rslora=self.rslora, use_dora=self.dora,
            target_modules=self._names(model), task_type=task_of(model),
            layers_to_transform=list(range(layers - self.last_layers, layers)) if self.last_layers else None,
        )  # fmt: skip
        return get_peft_model(model, config, low_cpu_mem_usage=False)

    def check_layers(self, layers: int) -> None:
        """Raise UsageError where a model of `layers` layers has no `last_layers`."""
        if self.last_layers and self.last_layers > layers:
            raise UsageError(
                "method.last_layers", f"the model has {layers} layers", got=self.last_layers, do="Leave it out for all"
            )
        if self.last_layers and "lm_head" in self.targets:
            raise UsageError("method.targets", "lm_head stands in no layer, so it does not go with last_layers")

    def _names(self, model: PreTrainedModel) -> str | list[str]:
        """What peft is told to adapt; beside chosen layers it takes no `all-linear`."""
        if self.targets != "all-linear":
            return list(self.targets)
        return _linear_names(model, but=model.get_output_embeddings()) if self.last_layers else "all-linear"

    def _check_targets(self, model: PreTrainedModel) -> None:
        if self.targets == "all-linear":
            return
        known = _linear_names(model)
        unknown = [name for name in self.targets if name.rsplit(".", 1)[-1] not in known]
        if unknown or not self.targets:
            wrong = unknown[0] if unknown else "an empty list"
            raise UsageError(
                "method.targets", "names no linear layer of this model", got=wrong, do=f"Known: {', '.join(known)}"
            )

    def rate_factor(self, name: str) -> float:
        """`plus_ratio` for the B matrices, 1 for the rest."""
        return self.plus_ratio if ".lora_B." in name else 1.0

    def save(self, model: Any, folder: Path) -> None:
        """Write the adapter in peft's own layout (adapter_model.safetensors, adapter_config.json)."""
        model.save_pretrained(folder, safe_serialization=True)

    def restore(self, model: Any, folder: Path) -> None:
        """Put saved adapter weights back into a model that `put` returned. Bit for bit."""
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        outcome = set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
        assert not outcome.unexpected_keys, outcome.unexpected_keys


def _linear_names(model: PreTrainedModel, but: Any = None) -> list[str]:
    """Last parts of the names of all linear layers, except one layer's."""
    import torch
    from transformers.pytorch_utils import Conv1D

    linear = (torch.nn.Linear, Conv1D)
    return sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, linear) and m is not but})
