"""LoRA: low-rank matrices beside frozen linear layers, W + scale * B A (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field

from tunesmith.core.config import Config
from tunesmith.core.errors import UsageError
from tunesmith.models.depth import LastLayers, known
from tunesmith.models.footprint import Footprint

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from tunesmith.models.load import PRECISIONS, Found
    from tunesmith.models.shape import Linear, Shape

Rank = Annotated[int, Field(ge=1, le=1024)]
Alpha = Annotated[int, Field(ge=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Targets = Annotated[
    Literal["all-linear"] | tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) and value != "all-linear" else value),
]
PlusRatio = Annotated[float, Field(ge=1, le=64)]


class Lora(Config):
    """Low-rank adapters beside frozen weights; small files, little memory."""

    kind: Literal["lora"] = "lora"
    """Low-rank adapters beside frozen weights."""
    rank: Rank = 16
    """Rank r of the two matrices; more rank, more capacity and memory."""
    alpha: Alpha = 32
    """The update is scaled by alpha / rank (with rslora by alpha / sqrt(rank))."""
    dropout: Dropout = 0.0
    """Dropout on the input of the adapters while training."""
    targets: Targets = "all-linear"
    """Which linear layers get an adapter: all-linear (every one but the output head) or a list of module names."""
    last_layers: LastLayers = None
    """Adapters in the last so many layers only: the layers before need no backward pass, which saves time and memory and
    usually costs some quality; null takes all, auto tries a few depths before the first step and says what each costs."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank), which keeps high ranks stable (arXiv 2312.03732)."""
    plus_ratio: PlusRatio = 1.0
    """LoRA+ (arXiv 2402.12354): learning rate of the B matrices as a multiple of the schedule's. The paper takes 16 with
    a learning rate that suits A; 1 trains both alike."""
    dora: bool = False
    """Train the length of every weight row beside its direction (DoRA, arXiv 2402.09353); slower, sometimes better."""
    init: Literal["lora", "gaussian", "orthogonal", "pissa", "pissa_niter_4", "pissa_niter_16"] = "lora"
    """What the adapters start from: lora (A random, B zero), gaussian (A normal), orthogonal (both random, their product
    zero; even rank), pissa (the largest singular values of the weight, arXiv 2404.02948, which often learns faster;
    pissa_niter_N finds them in seconds, by N iterations). A PiSSA adapter is saved as LoRA of twice the rank."""
    full_modules: tuple[str, ...] = ()
    """Parts outside the layers that are trained in full: embed_tokens, lm_head, norm (16 bytes a parameter). A tied model
    has one matrix for embed_tokens and lm_head: naming either trains both."""

    def footprint(self, shape: Shape) -> Footprint:
        """What planning has to know. Raises UsageError for parts that the model does not have."""
        from tunesmith.models.parts import trained_outside
        from tunesmith.models.shape import adapter_parameters, targeted

        self.check_layers(shape.layers)
        layers, outside = (
            known(self.last_layers) or shape.layers,
            trained_outside(shape, self.full_modules, "method.full_modules"),
        )
        part = replace(shape, layers=layers)
        adapted = tuple(targeted(part, self.targets))
        self._check_init(shape, adapted)
        adapters = adapter_parameters(part, self.rank, self.targets, dora=self.dora)
        embeddings = any("embed_tokens" in path or ".wte" in path or ".wpe" in path for path in outside)
        return Footprint(
            masters=sum(outside.values()), adapters=adapters, kept_bytes=4 * adapters if self._is_pissa else 0,
            layers=layers, passed=shape.layers - layers if embeddings else 0, rank=self.rank, dropout=self.dropout,
            adapted=adapted, dora=self.dora, embeddings=embeddings,
            head="lm_head" in outside or (embeddings and shape.tied),
        )  # fmt: skip

    def load(self, found: Found, precision: PRECISIONS) -> PreTrainedModel:
        """The base in `precision`, what will be trained in full with the very numbers of its files."""
        from tunesmith.models.load import load_model

        return self.sharpened(load_model(found, precision), found, precision)

    def sharpened(self, model: PreTrainedModel, found: Found, precision: PRECISIONS) -> PreTrainedModel:
        """The model with the parts of `full_modules` in fp32, as the base stores them."""
        from tunesmith.models.overlay import take_stored

        if self.full_modules and precision != "fp32":
            whole = {id(p) for module in self._whole(model).values() for p in module.parameters(recurse=False)}
            take_stored(model, found, [name for name, p in model.named_parameters() if id(p) in whole])
        return model

    def put(self, model: PreTrainedModel) -> Any:
        """Return a peft model: base frozen in its precision, adapters and `full_modules` trainable in fp32.

        Raises UsageError when no module has one of the names in `targets` or `full_modules`.
        """
        from peft import LoraConfig, get_peft_model

        from tunesmith.models.pissa import remember
        from tunesmith.models.scoring import task_of
        from tunesmith.models.whole import is_tied, use_masters

        self._check_targets(model)
        layers, last = model.config.get_text_config().num_hidden_layers, known(self.last_layers)
        self.check_layers(layers)
        whole = list(self._whole(model))
        config = LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, use_rslora=self.rslora, use_dora=self.dora,
            target_modules=self._names(model), task_type=task_of(model),
            layers_to_transform=list(range(layers - last, layers)) if last else None,
            init_lora_weights=cast(Any, self.init) if self.init != "lora" else True, modules_to_save=whole or None,
            ensure_weight_tying=is_tied(model, whole),
        )  # fmt: skip
        tuned = get_peft_model(model, config, low_cpu_mem_usage=False)
        if whole:
            use_masters(tuned)
        return remember(tuned) if self._is_pissa else tuned

    @property
    def _is_pissa(self) -> bool:
        return self.init.startswith("pissa")

    def _whole(self, model: PreTrainedModel) -> dict[str, Any]:
        """Path -> module of what is trained in full; what is tied stands under its embedding."""
        from tunesmith.models.parts import choose, split_parts

        if not self.full_modules:
            return {}
        outside = split_parts(model)[1]
        by_weight = {id(module.weight): path for path, module in reversed(outside.items())}
        chosen = choose(outside, self.full_modules, "method.full_modules")
        return {path: outside[path] for path in dict.fromkeys(by_weight[id(outside[it].weight)] for it in chosen)}

    def check_layers(self, layers: int) -> None:
        """Raise UsageError where a model of `layers` layers has no `last_layers`."""
        if (known(self.last_layers) or 0) > layers:
            raise UsageError(
                "method.last_layers", f"the model has {layers} layers", got=self.last_layers, do="Leave it out for all"
            )
        if self.last_layers and "lm_head" in self.targets:
            raise UsageError("method.targets", "lm_head stands in no layer, so it does not go with last_layers")
        if "lm_head" in self.targets and {"lm_head", "embed_tokens"} & set(self.full_modules):
            raise UsageError("method.full_modules", "lm_head has an adapter already", do="Name it in one of the two")
        if self.init == "orthogonal" and self.rank % 2:
            raise UsageError("method.rank", "must be even with init orthogonal", got=self.rank)

    def _check_init(self, shape: Shape, adapted: tuple[Linear, ...]) -> None:
        """PiSSA takes `rank` singular values out of every weight, and must own that weight."""
        if not self._is_pissa:
            return
        if shape.tied and shape.head in adapted:
            raise UsageError("method.init", "pissa would change the embedding that is tied to lm_head", got=self.init)
        narrowest = min(min(linear.inputs, linear.outputs) for linear in adapted)
        if narrowest < self.rank:
            raise UsageError(
                "method.rank", f"pissa takes so many singular values; a weight has {narrowest}", got=self.rank
            )

    def _names(self, model: PreTrainedModel) -> str | list[str]:
        """What peft is told to adapt; beside chosen layers it takes no `all-linear`."""
        if self.targets != "all-linear":
            return list(self.targets)
        return _linear_names(model, but=model.get_output_embeddings()) if known(self.last_layers) else "all-linear"

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

    def usual_rate(self, shape: Shape) -> float:
        """The learning rate with which answers are learned where nothing else is said."""
        return 2e-4 * shape.rate_by_width

    def rate_factor(self, name: str) -> float:
        """`plus_ratio` for the B matrices, 1 for the rest."""
        return self.plus_ratio if ".lora_B." in name else 1.0

    def save(self, model: Any, folder: Path) -> None:
        """Write the adapter in peft's own layout (adapter_model.safetensors, adapter_config.json).

        A PiSSA adapter is written as LoRA of twice the rank, so that it goes over the base as it was.
        """
        from tunesmith.models.pissa import as_lora

        model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
        if self._is_pissa:
            as_lora(model, folder)

    def restore(self, model: Any, folder: Path) -> None:
        """Put saved adapter weights back into a model that `put` returned. Bit for bit."""
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        from tunesmith.models.pissa import without_start

        state = load_file(folder / "adapter_model.safetensors")
        if self._is_pissa:
            state = without_start(model, state)
        outcome = set_peft_model_state_dict(model, state)
        assert not outcome.unexpected_keys, outcome.unexpected_keys


def _linear_names(model: PreTrainedModel, but: Any = None) -> list[str]:
    """Last parts of the names of all linear layers, except one layer's."""
    import torch
    from transformers.pytorch_utils import Conv1D

    linear = (torch.nn.Linear, Conv1D)
    return sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, linear) and m is not but})
