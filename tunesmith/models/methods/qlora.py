"""QLoRA: LoRA over a base that is held in four bits, NF4 (Dettmers et al. 2023, arXiv 2305.14314)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.core.config import Config
from tunesmith.models.depth import LastLayers
from tunesmith.models.methods.lora import Alpha, Dropout, Lora, PlusRatio, Rank, Targets

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from tunesmith.models.footprint import Footprint
    from tunesmith.models.load import PRECISIONS, Found
    from tunesmith.models.shape import Shape

BITS_PLAIN = 4 + 32 / 64
"""A weight in four bits, and an fp32 scale for every block of 64."""
BITS_DOUBLE = 4 + 8 / 64 + 32 / (64 * 256)
"""The same with the scales in 8 bits, and an fp32 scale of their own for every 256 of them: 4.127."""


class Qlora(Config):
    """LoRA beside a base in four bits (NF4): an eighth of the base's fp32 memory, slower steps. Needs bitsandbytes."""

    kind: Literal["qlora"] = "qlora"
    """Low-rank adapters beside a base in four bits."""
    double_quantization: bool = True
    """Hold the scales of the four-bit blocks in 8 bits: 4.127 bits a weight in place of 4.5."""
    rank: Rank = 16
    """Rank r of the two matrices."""
    alpha: Alpha = 32
    """The update is scaled by alpha / rank (with rslora by alpha / sqrt(rank))."""
    dropout: Dropout = 0.0
    """Dropout on the input of the adapters while training."""
    targets: Targets = "all-linear"
    """Which linear layers get an adapter: all-linear (every one but the output head) or a list of module names."""
    last_layers: LastLayers = None
    """Adapters in the last so many layers only; null takes all, auto tries a few depths before the first step."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank), which keeps high ranks stable."""
    plus_ratio: PlusRatio = 1.0
    """LoRA+: learning rate of the B matrices as a multiple of the schedule's."""
    dora: bool = False
    """Train the length of every weight row beside its direction (DoRA)."""
    full_modules: tuple[str, ...] = ()
    """Parts outside the layers that are trained in full, as in lora; they are never quantized."""

    @property
    def _lora(self) -> Lora:
        return Lora(**self.model_dump(exclude={"kind", "double_quantization"}))

    def footprint(self, shape: Shape) -> Footprint:
        """What planning has to know: as lora, the linear layers in four bits."""
        linears = sum(linear.inputs * linear.outputs for linear in (*shape.attention, *shape.mlp))
        bits = BITS_DOUBLE if self.double_quantization else BITS_PLAIN
        return replace(self._lora.footprint(shape), quantized=shape.layers * linears, quantized_bits=bits)

    def load(self, found: Found, precision: PRECISIONS) -> PreTrainedModel:
        """The base with its linear layers in NF4, the rest in `precision`, on the device that will train.

        Raises MissingExtra without bitsandbytes, ModelError for a base that is quantized already.
        """
        from tunesmith.models.quantized import load_nf4

        return self._lora.sharpened(load_nf4(found, precision, double=self.double_quantization), found, precision)

    def put(self, model: PreTrainedModel) -> Any:
        """Return a peft model: base frozen in four bits, adapters trainable in fp32."""
        return self._lora.put(model)

    def usual_rate(self, shape: Shape) -> float:
        """The learning rate with which answers are learned where nothing else is said."""
        return self._lora.usual_rate(shape)

    def rate_factor(self, name: str) -> float:
        """`plus_ratio` for the B matrices, 1 for the rest."""
        return self._lora.rate_factor(name)

    def save(self, model: Any, folder: Path) -> None:
        """Write the adapter in peft's own layout; it goes over the base as that is stored, quantized or not."""
        self._lora.save(model, folder)

    def restore(self, model: Any, folder: Path) -> None:
        """Put saved adapter weights back into a model that `put` returned. Bit for bit."""
        self._lora.restore(model, folder)
