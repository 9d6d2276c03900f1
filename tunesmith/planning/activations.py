"""Bytes that the backward pass needs again, derived operation by operation. Knows what autograd saves, not how much fits.

The counts follow Korthikanti et al. (arXiv 2205.05198, section 4.1) with what today's modules do differently: fused
attention, RMSNorm in fp32, gated MLPs, adapters beside frozen weights, autocast copies. tests/planning compares them
with torch's own saved tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tunesmith.models.footprint import Footprint
from tunesmith.models.joined import FAMILIES, LENGTH_STEP, at_once, grouped
from tunesmith.models.shape import Linear, Shape


@dataclass(frozen=True, slots=True)
class Batch:
    """The batch that goes through the model: `rows` x `tokens`, the rest of shorter rows being padding."""

    rows: int
    tokens: int
    padded: bool
    """Rows differ in length, so that attention takes a mask."""
    shared: int = 0
    """Tokens at the beginning that are the same in all rows and go through the model once (models/joined.py)."""
    on_cpu: bool = True
    """Where attention of joined rows is made of plain products."""
    step: int = LENGTH_STEP
    """Tokens to whose multiple joined rows are filled up; 1 where rows are not joined."""
    lengths: tuple[int, ...] = ()
    """Tokens of each row; none: all have `tokens`."""
    lean: bool = True
    """Modules compute as models/lean.py has it: not where the weights are spread over processes."""

    @property
    def _own(self) -> list[int]:
        return [length - self.shared for length in self.lengths] or [self.tokens - self.shared] * self.rows

    @property
    def own(self) -> int:
        """Tokens that go through the model row by row."""
        return sum(self._own)

    @property
    def attended(self) -> list[tuple[int, int, int]]:
        """Attention as (rows, queries, keys): the shared beginning, then every row over it and itself."""
        first = [(1, self.shared, self.shared)] if self.shared else []
        return [*first, *((rows, width, self.shared + width) for rows, width in grouped(sorted(self._own)))]

    @property
    def computed(self) -> int:
        """All tokens that go through the model, and what fills up their sequence."""
        tokens = self.shared + self.own
        return tokens + -tokens % self.step


def joins(shape: Shape, footprint: Footprint) -> bool:
    """Whether training puts the rows of a batch into one sequence (models/joined.py)."""
    is_plain_head = shape.head not in footprint.adapted
    return shape.family in FAMILIES and not shape.sliding and not footprint.prefix and is_plain_head


def layer_bytes(shape: Shape, footprint: Footprint, *, bf16: bool, batch: Batch) -> int:
    """Bytes one of the last layers saves for its backward pass, copies of its weights under autocast included."""
    parts = _Layer(shape, footprint, bf16, batch)
    a_token = parts.norms() + parts.linear_inputs() + parts.between()
    return a_token * batch.computed + parts.attention() + parts.weights()


def passed_bytes(shape: Shape, footprint: Footprint, *, bf16: bool, batch: Batch) -> int:
    """Bytes a layer saves in which nothing is trained, but whose input is."""
    nothing = replace(footprint, adapted=(), trained_linears=(), norms=False, head_norms=False, bottlenecks=0)
    return layer_bytes(shape, nothing, bf16=bf16, batch=batch)


def boundary_bytes(shape: Shape, footprint: Footprint, *, bf16: bool, batch: Batch) -> int:
    """Bytes of the hidden states between two layers: all that activation checkpointing keeps of a layer."""
    return shape.hidden * _residual(footprint, bf16=bf16) * batch.computed


def prefix_bytes(shape: Shape, footprint: Footprint, *, bf16: bool, batch: Batch) -> int:
    """Bytes of a trained prefix as it lies in the cache: for every row and layer, fp32 and its bf16 copy."""
    width = shape.key_value_heads * shape.head_size
    return batch.rows * footprint.prefix * shape.layers * 2 * width * (6 if bf16 else 4)


def _residual(footprint: Footprint, *, bf16: bool) -> int:
    """Bytes of one number between layers: a frozen bf16 embedding makes bf16, an fp32 master fp32."""
    return 2 if bf16 and not footprint.embeddings else 4


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer; every method but `attention` and `weights` gives bytes a token."""

    shape: Shape
    footprint: Footprint
    bf16: bool
    batch: Batch

    @property
    def number(self) -> int:
        """Bytes of one number that a linear layer reads or writes."""
        return 2 if self.bf16 else 4

    @property
    def adapted(self) -> list[Linear]:
        chosen = set(self.footprint.adapted)
        return [linear for linear in (*self.shape.attention, *self.shape.mlp) if linear in chosen]

    def norms(self) -> int:
        """Input and 1 / rms; not lean: input in fp32, and their product where the norm is trained. LayerNorm: input,
        mean, 1 / std.
        """
        it, residual = self.shape, _residual(self.footprint, bf16=self.bf16)
        if it.norm_bias:
            return it.norms * residual * (it.hidden + 2)
        if self.batch.lean:
            behind = max(0, it.norms - 2)  # what a block gave, before it is added
            heads = (it.heads + it.key_value_heads) * it.head_norms
            inputs = it.hidden * ((it.norms - behind) * residual + behind * self.number)
            return inputs + 4 * (it.norms + heads) + heads * it.head_size * self.number
        product = (4 if self._gemma else residual) if self.footprint.norms else 0
        bytes_a_token = it.norms * (it.hidden * (4 + product) + 4)
        if it.head_norms:
            heads = it.heads + it.key_value_heads
            product = (4 if self._gemma else self.number) if self.footprint.head_norms else 0
            bytes_a_token += heads * it.head_size * (4 + product) + 4 * heads
        return bytes_a_token

    def attention(self) -> int:
        """Bytes of queries, keys, values; output where the fused kernel is used, and score matrices where they are kept."""
        it, batch = self.shape, self.batch
        query, key = it.heads * it.head_size, it.key_value_heads * it.head_size
        if self._joined and batch.on_cpu:
            kept = sum(
                rows * queries * keys for rows, queries, keys in batch.attended if at_once(queries, keys) == queries
            )
            return self.number * ((query + 2 * key) * batch.computed + it.heads * kept)
        if self._joined:
            mask = 2 * batch.tokens**2 if self.bf16 and batch.shared else 0
            return mask + sum(self._attend(*part) for part in batch.attended)
        seen = batch.tokens + self.footprint.prefix
        if it.softcap:  # tanh, softmax in fp32, its copy
            return (query * self.number + 8 * it.heads * seen) * batch.own + 2 * query * self.number * batch.rows * seen
        if it.attention_dropout:  # softmax, mask, product, all in fp32
            return (query * 4 + 12 * it.heads * seen) * batch.own + 2 * query * 4 * batch.rows * seen
        whole = query + key if self._fused else 0  # values are a part of the fused output and hold all of it
        plain = self.number * (2 * query + 2 * key + whole) + 4 * it.heads
        if not batch.padded and not self.footprint.prefix:
            return plain * batch.own
        # with a mask keys and values are repeated for all heads, and each layer makes an additive mask of its own
        masked = (self.number * (2 * query + seen) + 4 * it.heads) * batch.own
        return masked + self.number * 2 * query * batch.rows * seen

    @property
    def _joined(self) -> bool:
        return joins(self.shape, self.footprint) and not self.shape.attention_dropout

    def _attend(self, rows: int, tokens: int, seen: int) -> int:
        """What the fused kernel keeps of `rows` times `tokens` queries over `seen` keys."""
        it = self.shape
        query, key = it.heads * it.head_size, it.key_value_heads * it.head_size
        return rows * ((self.number * 2 * query + 4 * it.heads) * tokens + self.number * 2 * key * seen)

    def linear_inputs(self) -> int:
        """What the gradients of weights or adapters are made from."""
        *readers, out = self.shape.attention
        *openers, down = self.shape.mlp
        kernel = not (self.shape.softcap or self.shape.attention_dropout or self._fused)
        kernel = kernel and not self._joined  # whose rows are put in line anew
        saved_already = kernel and not self._own_copies
        groups: list[Sequence[Linear]] = [readers, openers, [down], *([] if saved_already else [[out]])]
        return sum(self._inputs(group) for group in groups)

    @property
    def _fused(self) -> bool:
        return self.shape.gated and len(self.shape.attention) == 2

    @property
    def _own_copies(self) -> bool:
        """Adapters do not read the very tensor their neighbours read, but a converted or dropped copy."""
        return bool(self.adapted) and not self._adds_leanly and (self.bf16 or self.footprint.dropout > 0)

    @property
    def _adds_leanly(self) -> bool:
        """Adapters are added into the very product of the frozen weight."""
        special = self.footprint.dropout or self.footprint.dora or self.footprint.quantized
        return self.batch.lean and not special

    def _inputs(self, group: Sequence[Linear]) -> int:
        reading = [linear for linear in group if linear in (*self.footprint.trained_linears, *self.adapted)]
        if not reading:
            return 0
        copies = len(reading) if self._converted or self._own_copies else 1
        dropped = 4 * len(reading) if self.adapted and self.footprint.dropout > 0 else 0
        return reading[0].inputs * (copies * self.number + dropped)

    @property
    def _converted(self) -> bool:
        """What comes out of a norm is fp32, so that every linear layer makes its own bf16 copy of it."""
        return self.bf16 and (self.footprint.embeddings or (self.footprint.norms and not self._gemma))

    @property
    def _gemma(self) -> bool:
        """Norms multiply in fp32 and give the precision they were given."""
        return self.shape.family.startswith("gemma")

    def between(self) -> int:
        """The middle of the MLP (SwiGLU: gate, up, and its activation unless lean; GELU by hand: four), adapters' middles, DoRA.

        A bottleneck keeps its input and its middle.
        """
        it = self.shape
        is_lean = self.batch.lean and not self._gemma and not self._fused
        middle = (4 if not it.gated else 2 if is_lean else 3) * it.inner * self.number
        if not it.gated:
            middle += 2 * it.hidden * self.number  # GPT-2 drops out after both blocks
        outputs = sum(linear.outputs for linear in self.adapted) if self.footprint.dora else 0
        each = it.hidden + self.footprint.bottleneck_middles * self.footprint.bottleneck_size
        beside = self.footprint.bottlenecks * each
        return middle + self.number * (len(self.adapted) * self.footprint.rank + 2 * outputs + beside)

    def weights(self) -> int:
        """Bytes whatever the batch: bf16 copies of fp32 weights under autocast; DoRA's identity matrices."""
        rank, trained = self.footprint.rank, sum(linear.parameters for linear in self.footprint.trained_linears)
        beside = 2 * self.footprint.bottlenecks * self.footprint.bottleneck_size * self.shape.hidden
        adapters = sum(rank * (it.inputs + it.outputs) for it in self.adapted) + beside
        copies = 2 * (trained + adapters) if self.bf16 else 0
        dora = sum(self.number * it.inputs * (it.inputs + rank) for it in self.adapted) if self.footprint.dora else 0
        return copies + dora
