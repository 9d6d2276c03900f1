"""Attention of rows that stand in one sequence (models/joined.py): each sees the shared beginning and itself.

On a CPU plain products, which beat torch's fused kernel there; that kernel on a GPU and where dropout is drawn.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function
from torch.nn.functional import scaled_dot_product_attention

from tunesmith.models.joined import SMALL_SIDE, Group, Joined, at_once

ATTENTION = "tunesmith_joined"
"""The name under which transformers finds it."""
MASK_AND_GROUPS = {"cpu"}
"""Where torch has a fused kernel that takes a mask and heads in groups; elsewhere keys are repeated for one that takes a mask."""


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
    from transformers import AttentionInterface

    if joined is None:
        return AttentionInterface()["sdpa"](module, query, key, value, attention_mask, **options)
    scale, drop = options.get("scaling") or query.shape[-1] ** -0.5, options.get("dropout", 0.0)
    pieces = key.shape[1] * key.shape[2]
    q, k, v = (part[0].transpose(0, 1).to(value.dtype).reshape(pieces, -1) for part in (query, key, value))
    if query.device.type == "cpu" and not drop:
        found: Any = RowAttention.apply(q, k, v, scale, joined)
    else:
        found = by_kernel(q, k, v, scale, joined, drop)
    return found.view(1, -1, *query.shape[1::2]), None


class RowAttention(Function):
    """softmax(scale q k' + mask) v of every row, some queries at a time over no more keys than they see.

    q (N G, H / G D), k and v (N G, D), piece n G + g of token n and head group g -> as q, 0 where no row stands. Softmax
    in fp32. Kept: q, k, v, and the weights of rows whose queries are taken all at once; those of others are made again.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, joined: Joined
    ) -> torch.Tensor:
        # copies where they are views, which would keep all that they are a piece of
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        ctx.scale, ctx.groups = scale, joined.groups
        ctx.mask = joined.bias[0, 0, :SMALL_SIDE, :SMALL_SIDE].to(query.dtype)
        made, kept = torch.zeros_like(query), list[torch.Tensor]()
        for group in joined.groups:
            q, k, v = _read(group, query, key, value, scale)
            parts, found = _parts(group, ctx.mask), list[torch.Tensor]()
            for here, seen, hidden in parts:
                weights = _weights(q[:, here], k[:, seen], hidden)
                found.append(weights @ v[:, seen])
                kept += [weights] if len(parts) == 1 else []
            _write(made, group, torch.cat(found, dim=1))
        ctx.save_for_backward(query, key, value, *kept)
        return made

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        kept, exact = iter(kept), torch.promote_types(key.dtype, torch.float32)
        to_query = torch.zeros_like(query)
        to_key, to_value = (torch.zeros_like(part, dtype=exact) for part in (key, value))
        for group in ctx.groups:
            q, k, v = _read(group, query, key, value, ctx.scale)
            gradient = _read_gradient(group, outer[0], width=key.shape[1])
            parts, to_q = _parts(group, ctx.mask), list[torch.Tensor]()
            to_k, to_v = (torch.zeros_like(part, dtype=exact) for part in (k, v))
            for here, seen, hidden in parts:
                weights = next(kept) if len(parts) == 1 else _weights(q[:, here], k[:, seen], hidden)
                to_weights = gradient[:, here].flatten(1, 2) @ v[:, seen].transpose(1, 2)
                # softmax's own backward: w (g - sum(w g))
                to_scores = torch.ops.aten._softmax_backward_data(to_weights, weights, -1, q.dtype)
                to_q.append(to_scores @ k[:, seen])
                to_k[:, seen] += to_scores.transpose(1, 2) @ q[:, here].flatten(1, 2)
                to_v[:, seen] += weights.transpose(1, 2) @ gradient[:, here].flatten(1, 2)
            _write(to_query, group, torch.cat(to_q, dim=1).mul_(ctx.scale))
            _add(to_key, group, to_k)
            _add(to_value, group, to_v)
        return to_query, to_key.to(key.dtype), to_value.to(value.dtype), None, None


def _read(
    group: Group, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A group's scaled queries (B G, T, H / G, D), its keys and values (B G, S, D)."""
    q = query.index_select(0, group.queries_at).mul_(scale)
    k, v = (part.index_select(0, group.keys_at).view(-1, group.keys, part.shape[1]) for part in (key, value))
    return q.view(len(k), group.width, -1, key.shape[1]), k, v


def _read_gradient(group: Group, outer: torch.Tensor, width: int) -> torch.Tensor:
    """(B G, T, H / G, D), 0 behind the end of a row."""
    own = outer.index_select(0, group.queries_at)
    if group.past is not None:
        own.index_fill_(0, group.past, 0)
    return own.view(-1, group.width, outer.shape[1] // width, width)


def _write(whole: torch.Tensor, group: Group, own: torch.Tensor) -> None:
    """Put a group's (B G, T H / G, D) where its tokens stand."""
    whole[group.pieces] = own.view(-1, whole.shape[1]).index_select(0, group.written)


def _add(whole: torch.Tensor, group: Group, own: torch.Tensor) -> None:
    """Add a group's (B G, S, D) where its own tokens and the shared ones stand."""
    shared = group.keys - group.width
    whole[group.pieces] += own[:, shared:].reshape(-1, whole.shape[1]).index_select(0, group.written)
    if shared:
        every = own[:, :shared].unflatten(0, (group.rows, -1)).sum(0)  # (G, shared, D)
        whole[: len(every) * shared] += every.transpose(0, 1).flatten(0, 1)


def _parts(group: Group, mask: torch.Tensor) -> list[tuple[slice, slice, torch.Tensor]]:
    """The queries that are taken at a time, the keys that they see, and what the last of these hide: (n, 1, n)."""
    step, shared = at_once(group.width, group.keys), group.keys - group.width
    ends = [(start, min(start + step, group.width)) for start in range(0, group.width, step)]
    return [(slice(a, b), slice(shared + b), mask[: b - a, None, : b - a]) for a, b in ends]


def _weights(queries: torch.Tensor, keys: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Of n queries (B G, n, H / G, D) over keys (B G, S, D), the last n hidden as (n, 1, n) has it: (B G, n H / G, S)."""
    scores = queries.flatten(1, 2) @ keys.transpose(1, 2)
    scores.unflatten(1, queries.shape[1:3])[..., -len(hidden) :] += hidden
    return scores.softmax(dim=-1)


def by_kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, joined: Joined, dropout: float
) -> torch.Tensor:
    """What RowAttention gives, by torch's fused kernel."""
    made, width, each = list[torch.Tensor](), key.shape[1], query.shape[1] // key.shape[1]
    for group in joined.groups:
        q = query.index_select(0, group.queries_at).view(group.rows, -1, group.width, each, width)
        q = q.transpose(2, 3).flatten(1, 2)  # (B, H, T, D)
        k, v = (part.index_select(0, group.keys_at).view(group.rows, -1, group.keys, width) for part in (key, value))
        causal = group.width == group.keys
        mask = None if causal else joined.bias[0, 0, group.keys - group.width : group.keys, : group.keys].to(q.dtype)
        grouped = mask is None or query.device.type in MASK_AND_GROUPS
        if not grouped:
            k, v = (part.repeat_interleave(each, dim=1) for part in (k, v))
        found = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, dropout_p=dropout, scale=scale, enable_gqa=grouped
        ).unflatten(1, (-1, each))  # fmt: skip
        made.append(found.transpose(2, 3).reshape(-1, query.shape[1]).index_select(0, group.written))
    own = torch.cat(made)
    return torch.cat([own, own.new_zeros(len(query) - len(own), query.shape[1])])
