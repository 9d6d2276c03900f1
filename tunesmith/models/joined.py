"""A padded batch as one sequence: the beginning that all rows share once, then the rows one behind the other.

Linear layers see every token once; only attention knows the rows. Each row attends to the shared beginning and to itself,
so losses and gradients are those of the padded batch.
"""

from __future__ import annotations

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
SMALL_SCORES = 200 * 200
"""Scores of a row and head up to which plain products beat the fused CPU kernel, whose backward is slow for short rows."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A batch of B rows and T tokens, the first `shared` of them equal in all rows. N = shared + B * (T - shared)."""

    ids: torch.Tensor
    """(1, N)"""
    positions: torch.Tensor
    """(1, N), counted in each row from its first token."""
    targets: torch.Tensor
    """(N,), the token that comes next, IGNORED where it is not trained."""
    bias: torch.Tensor
    """(1, 1, T, T), 0 where a token sees another of its row and -inf elsewhere; (1, 1, 1, 1) where no attention reads it:
    long rows that share nothing take the kernel's own causal mask, and a square of their length would fill the memory."""
    shared: int
    rows: int
    states: torch.Tensor | None = None
    """(1, N, D), what enters the first layer that is computed, where the layers before it are left out."""


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
    """Put a right-padded batch (input_ids, labels, each (B, T); perhaps states, (B, T, D)) into one sequence.

    Padding stands behind the tokens of its row, which therefore never see it; it has no target.
    """
    import torch

    ids, labels = batch["input_ids"], batch["labels"]
    rows, width = ids.shape
    targets = torch.full_like(labels, IGNORED)
    targets[:, :-1] = labels[:, 1:]
    places = torch.arange(width, device=ids.device)
    side = width if shared or width * width <= SMALL_SCORES else 1
    bias = torch.full((side, side), float("-inf"), device=ids.device).triu(1)

    def one_row(first: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        return torch.cat([first[:shared], rest.flatten(0, 1)])

    states = batch.get("states")
    return Joined(
        ids=one_row(ids[0], ids[:, shared:])[None],
        positions=one_row(places, places[shared:].expand(rows, -1))[None],
        targets=one_row(torch.full_like(targets[0], IGNORED), targets[:, shared:]),
        bias=bias[None, None], shared=shared, rows=rows,
        states=None if states is None else one_row(states[0], states[:, shared:])[None],
    )  # fmt: skip


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
    shared, rows = joined.shared, joined.rows
    bias = joined.bias[0, 0].to(query.dtype)
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))  # (N, heads, D)
    q, k = q.to(v.dtype), k.to(v.dtype)

    def own(part: torch.Tensor) -> torch.Tensor:
        return part[shared:].unflatten(0, (rows, -1))  # (B, T - shared, heads, D)

    if not shared:
        return _attend(own(q), own(k), own(v), bias, scale, drop).flatten(0, 1)[None], None
    first = _attend(q[None, :shared], k[None, :shared], v[None, :shared], bias[:shared, :shared], scale, drop)
    keys, values = (torch.cat([part[:shared].expand(rows, -1, -1, -1), own(part)], dim=1) for part in (k, v))
    rest = _attend(own(q), keys, values, bias[shared:], scale, drop)
    return torch.cat([first[0], rest.flatten(0, 1)])[None], None


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, scale: float, dropout: float
) -> torch.Tensor:
    """Attention of q (B, T, H, D) over k and v (B, S, G, D), H a multiple of G; bias (T, S). Returns (B, T, H, D)."""
    import torch
    from torch.nn.functional import dropout as drop
    from torch.nn.functional import scaled_dot_product_attention

    rows, length, heads, width = q.shape
    seen, groups = k.shape[1:3]
    if q.device.type != "cpu" or length * seen > SMALL_SCORES:
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        causal = length == seen
        return scaled_dot_product_attention(
            q, k, v, attn_mask=None if causal else bias, is_causal=causal, dropout_p=dropout, scale=scale,
            enable_gqa=heads != groups,
        ).transpose(1, 2)  # fmt: skip
    each = heads // groups
    q = (q * scale).unflatten(2, (groups, each)).permute(0, 2, 3, 1, 4).reshape(rows * groups, each * length, width)
    k, v = (part.transpose(1, 2).contiguous().flatten(0, 1) for part in (k, v))  # (B G, S, D)
    scores = (q @ k.transpose(1, 2)).unflatten(1, (each, length)) + bias  # (B G, each, T, S)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype)
    if dropout:
        weights = drop(weights, dropout)
    mixed = (weights.flatten(1, 2) @ v).unflatten(0, (rows, groups)).unflatten(2, (each, length))  # (B, G, each, T, D)
    return mixed.permute(0, 3, 1, 2, 4).flatten(2, 3)
