"""A padded batch as one sequence: the beginning that all rows share once, then the rows, with next to no padding.

Linear layers see every token once; only attention knows the rows. Each row attends to the shared beginning and to itself,
so losses and gradients are those of the padded batch. Rows of like length lie together and have the same number of places,
so that attention takes them as they lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.core.examples import IGNORED
from tunesmith.models.virtual import leading_logits, virtual_tokens

if TYPE_CHECKING:
    import torch

ATTENTION = "tunesmith_joined"
"""The name under which transformers finds the attention."""
FAMILIES = ("gemma", "llama", "mistral", "phi3", "qwen2", "qwen3")
"""Model types whose attention takes our function and whose logits are the output head's product and nothing more."""
SMALL_SIDE = 200
SMALL_SCORES = SMALL_SIDE * SMALL_SIDE
"""Scores of a row and head that are made at a time on a CPU, and whose softmax is kept; in fp32 the fused kernel takes more."""
QUERIES_AT_ONCE = 128
"""Of a row with more scores, in bf16 (decision 008)."""


LENGTH_STEP = 16
"""Tokens; sequences are filled up to a multiple of it, so that few shapes come up (decision 005)."""
LITTLE_PADDING = 0.1
"""Share of a group's tokens up to which padding is computed along: attention in more groups costs more (decision 008)."""
Groups = tuple[tuple[int, int], ...]
"""Rows that lie together: (how many, places of each)."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A batch of B rows and at most T tokens, the first `shared` of them equal in all rows, as a sequence of N tokens."""

    ids: torch.Tensor
    """(1, N)"""
    positions: torch.Tensor
    """(1, N), counted in each row from its first token."""
    targets: torch.Tensor
    """(N,), the token that comes next, IGNORED where it is not trained."""
    bias: torch.Tensor
    """(1, 1, S, S), 0 where a token sees another of its row and -inf elsewhere, for as many tokens as attention reads it:
    long rows that share nothing need only a corner of it, and a square of their length would fill the memory."""
    shared: int
    rows: int
    width: int
    """T - shared"""
    origins: torch.Tensor
    """(N,), the place of each in the padded batch, (B, T) flattened."""
    groups: Groups
    """The rows behind the shared beginning, as they lie in the sequence."""
    places: torch.Tensor | None
    """(n,) which of B * width places stand in the sequence, in its order; None for all in theirs."""
    states: torch.Tensor | None = None
    """(1, N, D), what enters the first layer that is computed, where the layers before it are left out."""

    def apart(self, part: torch.Tensor) -> torch.Tensor:
        """The rows behind the shared beginning: (N, ...) -> (B, width, ...); padding holds anything."""
        size = self.rows * self.width
        if self.places is None:
            own = part[self.shared : self.shared + size]
        else:
            own = part[self.shared : self.shared + len(self.places)]
            own = own.new_zeros(size, *own.shape[1:]).index_copy_(0, self.places, own)
        return own.unflatten(0, (self.rows, self.width))

    def in_line(self, first: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """The way back: the shared beginning (shared, ...) and the rows (B, width, ...) -> (N, ...)."""
        return _in_line(first, rest, self.places)


def may_join(model: Any) -> bool:
    """Whether attention of this model is full and ours to compute, with no keys from elsewhere (a trained prefix)."""
    if virtual_tokens(model) != leading_logits(model):
        return False
    config = model.config.get_text_config()
    windows = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    return config.model_type in FAMILIES and not windows and not getattr(config, "sliding_window", None)


def may_share(model: Any) -> bool:
    """Whether one row may stand for all: not while dropout is drawn."""
    import torch

    if not model.training:
        return True
    drawn = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())
    return not drawn and not getattr(model.config.get_text_config(), "attention_dropout", 0)


def shared_tokens(batch: dict[str, torch.Tensor]) -> int:
    """Tokens at the beginning that are equal in all rows and end before the first label; 0 for a single row."""
    ids, labels = batch["input_ids"], batch["labels"]
    if len(ids) == 1:
        return 0
    differs = (ids != ids[:1]).any(dim=0) | (batch["attention_mask"] == 0).any(dim=0)
    labelled = (labels != IGNORED).any(dim=0)
    ends = (differs | labelled).nonzero()
    return max(0, int(ends[0]) - 1) if len(ends) else 0


def join(batch: dict[str, torch.Tensor], shared: int) -> Joined:
    """Put a right-padded batch (input_ids, attention_mask, labels, each (B, T); perhaps states, (B, T, D)) into one sequence.

    What fills it up stands at the end and has no target.
    """
    import torch

    ids, labels = batch["input_ids"], batch["labels"]
    rows, width = ids.shape
    targets = torch.full_like(labels, IGNORED)
    targets[:, :-1] = labels[:, 1:]
    groups, order = lay_out((batch["attention_mask"].sum(1) - shared).tolist(), width - shared)
    side = width if shared else min(width, SMALL_SIDE)
    bias = torch.full((side, side), float("-inf"), device=ids.device).triu(1)
    places = None if order is None else _places(groups, order, width - shared).to(ids.device)

    def one_row(every: torch.Tensor) -> torch.Tensor:
        return _in_line(every[0, :shared], every[:, shared:], places)

    states, columns = batch.get("states"), torch.arange(width, device=ids.device)
    no_targets = targets.new_full((shared,), IGNORED)
    return Joined(
        ids=one_row(ids)[None], positions=one_row(columns.expand(rows, -1))[None], bias=bias[None, None], shared=shared,
        targets=_in_line(no_targets, targets[:, shared:], places, IGNORED), rows=rows, width=width - shared,
        origins=one_row(torch.arange(rows * width, device=ids.device).view(rows, width)), groups=groups, places=places, states=None if states is None else one_row(states)[None],
    )  # fmt: skip


def lay_out(lengths: Sequence[int], width: int) -> tuple[Groups, list[int] | None]:
    """Rows of like length together, and the order in which they then lie; None where all lie as they are, `width` wide."""
    if len(lengths) * width <= (1 + LITTLE_PADDING) * sum(lengths):
        return ((len(lengths), width),), None
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    return grouped([lengths[row] for row in order]), order


def grouped(lengths: Sequence[int]) -> Groups:
    """As few groups of rows as keep padding small; `lengths` from the shortest on."""
    groups: list[tuple[int, int]] = []
    tokens = 0
    for length in lengths:
        if groups and (groups[-1][0] + 1) * length <= (1 + LITTLE_PADDING) * (tokens + length):
            groups[-1], tokens = (groups[-1][0] + 1, length), tokens + length
        else:
            groups, tokens = [*groups, (1, length)], length
    return tuple(groups)


def _places(groups: Groups, order: list[int], width: int) -> torch.Tensor:
    """(n,) where what stands in the sequence stood in (B, width), flattened."""
    import torch

    found, done = [], 0
    for count, own in groups:
        rows = torch.tensor(order[done : done + count])
        found.append((rows[:, None] * width + torch.arange(own)).flatten())
        done += count
    return torch.cat(found)


def _in_line(first: torch.Tensor, rest: torch.Tensor, places: torch.Tensor | None, filler: int = 0) -> torch.Tensor:
    import torch

    own = rest.flatten(0, 1)
    own = own if places is None else own.index_select(0, places)
    tail = own.new_full((-(len(first) + len(own)) % LENGTH_STEP, *own.shape[1:]), filler)
    return torch.cat([first, own, tail])


def take_over_attention(model: Any) -> None:
    """Give the model the attention that knows joined rows; without them it is transformers' own sdpa."""
    from transformers import AttentionInterface, AttentionMaskInterface

    if model.config.get_text_config()._attn_implementation == ATTENTION:
        return
    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, AttentionMaskInterface()["sdpa"])
    model.set_attn_implementation(ATTENTION)


def _attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, *, joined: Joined | None = None, **options: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention as transformers calls it: query (1, H, N, D), key and value (1, G, N, D) -> (1, N, H, D)."""
    import torch
    from transformers import AttentionInterface

    if joined is None:
        return AttentionInterface()["sdpa"](module, query, key, value, attention_mask, **options)
    drop = options.get("dropout", 0.0)
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))  # (N, heads, D)
    own = [joined.shared, *(count * width for count, width in joined.groups)]
    sizes, bias = [*own, len(q) - sum(own)], joined.bias[0, 0]
    # taken apart at once: every slice would give a gradient as long as the whole
    first, *rows, end = zip(*(part.to(v.dtype).split(sizes) for part in (q, k, v)), strict=True)
    found: list[torch.Tensor] = []
    if joined.shared:
        queries, keys, values = (part[None] for part in first)
        found.append(attend(queries, keys, values, bias, scale, drop)[0])
    for (count, width), parts in zip(joined.groups, rows, strict=True):
        queries, keys, values = (part.unflatten(0, (count, width)) for part in parts)
        if joined.shared:
            keys, values = (
                torch.cat([part.expand(count, -1, -1, -1), own], dim=1)
                for part, own in zip(first[1:], (keys, values), strict=True)
            )
        found.append(attend(queries, keys, values, bias, scale, drop).flatten(0, 1))
    return torch.cat([*found, torch.zeros_like(end[0])])[None], None


def at_once(queries: int, keys: int, *, bf16: bool) -> int | None:
    """Queries of a row whose scores a CPU makes at a time, for models/lean.py; None where the fused kernel is faster."""
    if queries * keys <= SMALL_SCORES:
        return queries
    return QUERIES_AT_ONCE if bf16 else None


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, scale: float, dropout: float
) -> torch.Tensor:
    """Attention of q (B, T, H, D) over k and v (B, S, G, D), H a multiple of G, each over its own and the S - T before the first.

    `bias` is that of Joined. Returns (B, T, H, D).
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from tunesmith.models.lean import RowAttention

    (_, length, heads, _), (seen, groups) = q.shape, k.shape[1:3]
    block = at_once(length, seen, bf16=q.dtype == torch.bfloat16)
    if q.device.type == "cpu" and block and not dropout:
        return RowAttention.apply(q, k, v, bias[:block, :block].to(q.dtype), scale, block)  # pyright: ignore[reportReturnType]
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    causal = length == seen
    mask = None if causal else bias[seen - length : seen, :seen].to(q.dtype)
    return scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, dropout_p=dropout, scale=scale, enable_gqa=heads != groups
    ).transpose(1, 2)  # fmt: skip
