"""A padded batch as one sequence: the beginning that all rows share once, then the rows one behind the other, no padding.

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


LENGTH_STEP = 16
"""Tokens; sequences are filled up to a multiple of it, so that few shapes come up (decision 005)."""


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
    """(1, 1, T, T), 0 where a token sees another of its row and -inf elsewhere; (1, 1, 1, 1) where no attention reads it:
    long rows that share nothing take the kernel's own causal mask, and a square of their length would fill the memory."""
    shared: int
    rows: int
    width: int
    """T - shared"""
    real: torch.Tensor | None
    """(n,) which of B * width places hold tokens; None where all do, and nothing is filled up."""
    states: torch.Tensor | None = None
    """(1, N, D), what enters the first layer that is computed, where the layers before it are left out."""

    def apart(self, part: torch.Tensor) -> torch.Tensor:
        """The rows behind the shared beginning: (N, ...) -> (B, width, ...); padding holds anything."""
        from tunesmith.models.lean import ToPlaces

        own = part[self.shared :]
        if self.real is not None:
            own = ToPlaces.apply(own[: len(self.real)], self.real, self.rows * self.width)
        return own.unflatten(0, (self.rows, self.width))  # pyright: ignore[reportAttributeAccessIssue]

    def in_line(self, first: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """The way back: the shared beginning (shared, ...) and the rows (B, width, ...) -> (N, ...)."""
        return _in_line(first, rest, self.real)


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
    places = torch.arange(width, device=ids.device)
    side = width if shared or width * width <= SMALL_SCORES else 1
    bias = torch.full((side, side), float("-inf"), device=ids.device).triu(1)
    real = batch["attention_mask"][:, shared:].flatten().nonzero().squeeze(1)
    is_whole = len(real) == rows * (width - shared) and (shared + len(real)) % LENGTH_STEP == 0
    real = None if is_whole else real

    def one_row(every: torch.Tensor, filler: int = 0) -> torch.Tensor:
        return _in_line(every[0, :shared], every[:, shared:], real, filler)

    states = batch.get("states")
    targets[:, : max(shared - 1, 0)] = IGNORED
    return Joined(
        ids=one_row(ids)[None], positions=one_row(places.expand(rows, -1))[None], targets=one_row(targets, IGNORED),
        bias=bias[None, None], shared=shared, rows=rows, width=width - shared, real=real,
        states=None if states is None else one_row(states)[None],
    )  # fmt: skip


def _in_line(first: torch.Tensor, rest: torch.Tensor, real: torch.Tensor | None, filler: int = 0) -> torch.Tensor:
    import torch

    from tunesmith.models.lean import FromPlaces

    own: Any = rest.flatten(0, 1)
    if real is None:
        return torch.cat([first, own])
    tail = own.new_full((-(len(first) + len(real)) % LENGTH_STEP, *own.shape[1:]), filler)
    return torch.cat([first, FromPlaces.apply(own, real), tail])  # pyright: ignore[reportCallIssue, reportArgumentType]


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
    queries, keys, values = (joined.apart(part) for part in (q, k, v))  # (B, width, heads, D)
    if not shared:
        return joined.in_line(q[:0], _attend(queries, keys, values, bias, scale, drop))[None], None
    first = _attend(q[None, :shared], k[None, :shared], v[None, :shared], bias[:shared, :shared], scale, drop)
    before_keys, before_values = (part[:shared].expand(rows, -1, -1, -1) for part in (k, v))
    keys, values = torch.cat([before_keys, keys], dim=1), torch.cat([before_values, values], dim=1)
    return joined.in_line(first[0], _attend(queries, keys, values, bias[shared:], scale, drop))[None], None


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, scale: float, dropout: float
) -> torch.Tensor:
    """Attention of q (B, T, H, D) over k and v (B, S, G, D), H a multiple of G; bias (T, S). Returns (B, T, H, D)."""
    from torch.nn.functional import scaled_dot_product_attention

    from tunesmith.models.lean import RowAttention

    (_, length, heads, _), (seen, groups) = q.shape, k.shape[1:3]
    if q.device.type == "cpu" and length * seen <= SMALL_SCORES and not dropout:
        return RowAttention.apply(q, k, v, bias, scale)  # pyright: ignore[reportReturnType]
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    causal = length == seen
    return scaled_dot_product_attention(
        q, k, v, attn_mask=None if causal else bias, is_causal=causal, dropout_p=dropout, scale=scale,
        enable_gqa=heads != groups,
    ).transpose(1, 2)  # fmt: skip
