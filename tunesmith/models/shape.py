"""A model's parts and their sizes from config.json alone: no weights, no torch. Knows decoders, not how they are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith.core import files
from tunesmith.core.errors import ModelError, UsageError, did_you_mean

Targets = Literal["all-linear"] | Sequence[str]


@dataclass(frozen=True, slots=True)
class Linear:
    """One linear layer: weight (outputs, inputs) and, where it has one, a bias of `outputs`."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def parameters(self) -> int:
        """Weight and bias."""
        return self.inputs * self.outputs + (self.outputs if self.bias else 0)


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder of `layers` equal layers; parameter counts are exact."""

    family: str
    layers: int
    hidden: int
    inner: int
    """Width of the middle of the MLP."""
    heads: int
    key_value_heads: int
    head_size: int
    vocabulary: int
    positions: int
    """Rows of a learned position embedding (GPT-2), else 0."""
    tied: bool
    """The output head is the embedding matrix."""
    gated: bool
    """The MLP multiplies two projections (SwiGLU, GeGLU)."""
    norms: int
    """Norms of width `hidden` in a layer: 2, in Gemma 2 and 3 also 2 after the blocks."""
    head_norms: bool
    """Queries and keys have a norm of width `head_size` (Qwen3, Gemma 3)."""
    norm_bias: bool
    attention_dropout: float
    softcap: bool
    """Attention scores are squashed (Gemma 2), which needs the whole matrix of scores in memory."""
    sliding: bool
    """Some layers see only a window of the tokens before."""
    prefix: str
    """Where the layers stand in the model, for target names: `model.layers`."""
    attention: tuple[Linear, ...]
    mlp: tuple[Linear, ...]

    @property
    def rate_by_width(self) -> float:
        """The learning rate that its weights and their adapters bear, over what they do in a model 4096 wide.

        A power of the width; the exponent is that of "LoRA without regret" (Schulman et al., Thinking Machines 2025) for
        Llama models. Decision 010 says what speaks for it.
        """
        return (4096 / self.hidden) ** 0.78

    @property
    def head(self) -> Linear:
        """The output head, hidden states to logits."""
        return Linear("lm_head", self.hidden, self.vocabulary)

    @property
    def embedding_parameters(self) -> int:
        """Token and learned position embeddings."""
        return (self.vocabulary + self.positions) * self.hidden

    @property
    def head_parameters(self) -> int:
        """The output head; 0 where it is tied to the embedding."""
        return 0 if self.tied else self.head.parameters

    @property
    def attention_parameters(self) -> int:
        """The linear layers of one layer's attention."""
        return sum(linear.parameters for linear in self.attention)

    @property
    def mlp_parameters(self) -> int:
        """The linear layers of one layer's MLP."""
        return sum(linear.parameters for linear in self.mlp)

    @property
    def norm_parameters(self) -> int:
        """All norms of one layer."""
        return self.norms * self._norm + (2 * self.head_size if self.head_norms else 0)

    @property
    def layer_parameters(self) -> int:
        """One layer."""
        return self.attention_parameters + self.mlp_parameters + self.norm_parameters

    @property
    def parameters(self) -> int:
        """The whole model, a tied matrix counted once."""
        return self.embedding_parameters + self.layers * self.layer_parameters + self._norm + self.head_parameters

    @property
    def _norm(self) -> int:
        return self.hidden * (2 if self.norm_bias else 1)


@dataclass(frozen=True, slots=True)
class _Family:
    """How one `model_type` differs from Llama; defaults are those of its class in transformers 5.23."""

    tied: bool = False
    key_value_heads: int | None = None
    head_size: int | None = None
    bias: str | bool = "attention_bias"
    """Bias of queries, keys and values: always, never, or as the config's key says."""
    output_bias: str | bool = "attention_bias"
    mlp_bias: str | bool = False
    norms: int = 2
    head_norms: bool = False
    fused: bool = False
    """One linear makes queries, keys and values, one gate and up (Phi-3)."""


FAMILIES = {
    "llama": _Family(mlp_bias="mlp_bias"),
    "mistral": _Family(key_value_heads=8, bias=False, output_bias=False),
    "qwen2": _Family(key_value_heads=32, bias=True, output_bias=False),
    "qwen3": _Family(key_value_heads=32, head_size=128, head_norms=True),
    "gemma": _Family(tied=True, key_value_heads=16, head_size=256),
    "gemma2": _Family(tied=True, key_value_heads=4, head_size=256, norms=4),
    "gemma3_text": _Family(tied=True, key_value_heads=4, head_size=256, norms=4, head_norms=True),
    "phi3": _Family(bias=False, output_bias=False, fused=True),
    "smollm3": _Family(tied=True, key_value_heads=4, mlp_bias="mlp_bias"),
    "granite": _Family(mlp_bias="mlp_bias"),
}
KNOWN = (*FAMILIES, "gpt2")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def read_shape(source: Path | Mapping[str, Any]) -> Shape:
    """The shape of a model from a folder with config.json, that file, or its content.

    Raises ModelError for a file that is not there, an architecture whose parts are not known, a mixture of experts,
    and a config that lacks a size.
    """
    if isinstance(source, Mapping):
        return _shape(source, "config.json")
    path = source / "config.json" if source.is_dir() else source
    if not path.is_file():
        raise ModelError(str(source), "has no config.json")
    return _shape(files.read_object(path), str(path))


def _shape(config: Mapping[str, Any], where: str) -> Shape:
    kind = config.get("model_type")
    if not kind:
        raise ModelError(where, "lacks model_type", do=f"Known: {', '.join(KNOWN)}")
    if any(config.get(key) for key in _EXPERTS):
        raise ModelError(where, "is a mixture of experts, which cannot be planned", got=kind)
    if "text_config" in config:
        raise ModelError(where, "is a model of images or sound and text", got=kind, do="Use a text-only model")
    if kind == "gpt2":
        return _gpt2(config, where)
    if kind not in FAMILIES:
        near = did_you_mean(str(kind), KNOWN)
        raise ModelError(where, "model_type is of no family whose parts are known", got=kind, do=near)
    return _llama_like(kind, config, where)


def _llama_like(kind: str, config: Mapping[str, Any], where: str) -> Shape:
    family = FAMILIES[kind]
    hidden, heads = _size(config, "hidden_size", where), _size(config, "num_attention_heads", where)
    inner = _size(config, "intermediate_size", where)
    head_size = config.get("head_dim") or family.head_size or hidden // heads
    shared = config.get("num_key_value_heads", family.key_value_heads) or heads
    bias, output_bias, mlp_bias = (
        bool(config.get(wish, False)) if isinstance(wish, str) else wish
        for wish in (family.bias, family.output_bias, family.mlp_bias)
    )
    query, key = heads * head_size, shared * head_size
    if family.fused:
        attention = [("qkv_proj", hidden, query + 2 * key, bias)]
        mlp = [("gate_up_proj", hidden, 2 * inner)]
    else:
        attention = [("q_proj", hidden, query, bias), ("k_proj", hidden, key, bias), ("v_proj", hidden, key, bias)]
        mlp = [("gate_proj", hidden, inner), ("up_proj", hidden, inner)]
    attention.append(("o_proj", query, hidden, output_bias))
    mlp.append(("down_proj", inner, hidden))
    return Shape(
        family=kind, layers=_size(config, "num_hidden_layers", where), hidden=hidden, inner=inner, heads=heads,
        key_value_heads=shared, head_size=head_size, vocabulary=_size(config, "vocab_size", where), positions=0,
        tied=bool(config.get("tie_word_embeddings", family.tied)), gated=True, norms=family.norms,
        head_norms=family.head_norms, norm_bias=False, attention_dropout=config.get("attention_dropout") or 0.0,
        softcap=bool(config.get("attn_logit_softcapping", 50.0 if kind == "gemma2" else None)),
        sliding=_sliding(kind, config), prefix="model.layers",
        attention=tuple(Linear(f"self_attn.{name}", inputs, outputs, has) for name, inputs, outputs, has in attention),
        mlp=tuple(Linear(f"mlp.{name}", inputs, outputs, mlp_bias) for name, inputs, outputs in mlp),
    )  # fmt: skip


def _sliding(kind: str, config: Mapping[str, Any]) -> bool:
    if kind in {"gemma2", "gemma3_text"}:
        return True
    if kind in {"qwen2", "qwen3", "smollm3"}:
        return bool(config.get("use_sliding_window"))
    return bool(config.get("sliding_window", 4096 if kind == "mistral" else None))


def _gpt2(config: Mapping[str, Any], where: str) -> Shape:
    hidden, heads = _size(config, "n_embd", where), _size(config, "n_head", where)
    inner = config.get("n_inner") or 4 * hidden
    return Shape(
        family="gpt2", layers=_size(config, "n_layer", where), hidden=hidden, inner=inner, heads=heads,
        key_value_heads=heads, head_size=hidden // heads, vocabulary=_size(config, "vocab_size", where),
        positions=_size(config, "n_positions", where), tied=bool(config.get("tie_word_embeddings", True)), gated=False,
        norms=2, head_norms=False, norm_bias=True, attention_dropout=config.get("attn_pdrop", 0.1),
        softcap=False, sliding=False, prefix="transformer.h",
        attention=(Linear("attn.c_attn", hidden, 3 * hidden, bias=True), Linear("attn.c_proj", hidden, hidden, bias=True)),
        mlp=(Linear("mlp.c_fc", hidden, inner, bias=True), Linear("mlp.c_proj", inner, hidden, bias=True)),
    )  # fmt: skip


def _size(config: Mapping[str, Any], key: str, where: str) -> int:
    value = config.get(key)
    if value is None:
        raise ModelError(where, f"lacks {key}")
    if not isinstance(value, int) or value < 1:
        raise ModelError(where, f"{key} must be a whole number above 0", got=value)
    return value


def targeted(shape: Shape, targets: Targets) -> list[Linear]:
    """The linear layers that get an adapter, each layer's for itself, by peft's rule: a target is the end of a name.

    `all-linear` is every one but the output head. Raises UsageError for a name that no linear layer ends with.
    """
    inside = (*shape.attention, *shape.mlp)
    named = [(f"{shape.prefix}.{layer}.{linear.name}", linear) for layer in range(shape.layers) for linear in inside]
    if isinstance(targets, str):
        return [linear for _, linear in named]
    named.append((shape.head.name, shape.head))
    for target in targets:
        if not any(_ends(name, target) for name, _ in named):
            known = sorted({name.rsplit(".", 1)[-1] for name, _ in named})
            raise UsageError(
                "method.targets", "names no linear layer of this model", got=target, do=f"Known: {', '.join(known)}"
            )
    return [linear for name, linear in named if any(_ends(name, target) for target in targets)]


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def adapter_parameters(shape: Shape, rank: int, targets: Targets = "all-linear", *, dora: bool = False) -> int:
    """Trained parameters of LoRA: rank x (inputs + outputs) a linear layer (arXiv 2106.09685, section 4.1).

    DoRA adds one length per output (arXiv 2402.09353). Raises UsageError as `targeted` does.
    """
    return sum(rank * (it.inputs + it.outputs) + (it.outputs if dora else 0) for it in targeted(shape, targets))
