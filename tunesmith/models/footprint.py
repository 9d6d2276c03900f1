"""What a method does to a model of a known shape, as far as memory goes: all that planning knows of methods."""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.models.shape import Linear, Shape


@dataclass(frozen=True, slots=True)
class Footprint:
    """Trained parameters (fp32 with gradient and two moments, 16 bytes each), and what the backward pass has to keep."""

    masters: int = 0
    """Weights of the model itself that are trained."""
    adapters: int = 0
    """Trained parameters beside the model's own."""
    replaced: int = 0
    """Frozen weights that the masters stand in for, so that they are not held twice."""
    quantized: int = 0
    """Frozen weights held in few bits."""
    quantized_bits: float = 0.0
    """Bits of one of them, its share of scales included."""
    kept_bytes: int = 0
    """Bytes that the method keeps for itself."""
    layers: int = 0
    """Last layers in which something is trained."""
    passed: int = 0
    """Layers before them that train nothing but hand a gradient on."""
    adapted: tuple[Linear, ...] = ()
    """Linear layers with an adapter, each layer's for itself."""
    rank: int = 0
    """Of the adapters."""
    dropout: float = 0.0
    """On the input of the adapters."""
    dora: bool = False
    trained_linears: tuple[Linear, ...] = ()
    """Linear layers of one layer whose own weights are trained."""
    norms: bool = False
    """The norms of whole states inside those layers are trained."""
    head_norms: bool = False
    """The norms of queries and keys are trained, where the family has them."""
    head: bool = False
    """The output head is trained, or is tied to a trained embedding."""
    embeddings: bool = False
    """The embedding is trained: numbers between layers are fp32 then."""

    virtual: int = 0
    """Virtual tokens that go through the model before the rows."""
    prefix: int = 0
    """Virtual tokens that are only keys and values, in every layer and for every row."""
    recomputes: bool = True
    """Whether activations can be recomputed in the backward pass."""
    bottlenecks: int = 0
    """Small networks in each of those last layers."""
    bottleneck_size: int = 0
    """Width of their middle."""
    bottleneck_middles: int = 0
    """How often the backward pass keeps a number of that middle."""

    @property
    def trained(self) -> int:
        """Parameters with a gradient."""
        return self.masters + self.adapters

    def untouched(self, shape: Shape) -> int:
        """Layers at the front that train nothing and hand no gradient on; 0 where something before them is trained."""
        return 0 if self.embeddings or self.virtual or self.prefix else shape.layers - self.layers - self.passed

    def weights_bytes(self, shape: Shape, precision: str) -> int:
        """All weights: trained ones in fp32, frozen ones quantized or in the precision of the run."""
        frozen = shape.parameters - self.replaced - self.quantized
        quantized = round(self.quantized * self.quantized_bits / 8)
        return (2 if precision == "bf16" else 4) * frozen + quantized + 4 * self.trained + self.kept_bytes
