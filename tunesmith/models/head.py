"""Cross entropy of the labelled tokens only, and the beginning that all rows of a batch share computed once.

The output head never sees positions that nobody trains. Rows of one dataset mostly begin with the same system message:
its keys and values are computed for one row and used by all, which is exact, since no token sees what follows it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith.core.examples import IGNORED

if TYPE_CHECKING:
    import torch

SHORTEST_SHARED = 8
"""Tokens; a shorter common beginning costs more calls than it saves."""


def label_losses(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross entropy of every labelled token, in fp32.

    `batch` holds input_ids, attention_mask and labels, each (B, T); the token at t + 1 is predicted from t. Logits are
    computed for the columns in which any row has a label. Returns (B, K) with 0 where a row has none; the sum over
    K is the row's negative log-likelihood in nats.
    """
    from torch.nn.functional import cross_entropy

    targets = batch["labels"][:, 1:]  # (B, T-1)
    columns = (targets != IGNORED).any(dim=0).nonzero().squeeze(1)  # (K,)
    logits = _logits(model, batch, columns)  # (B, K, V)
    wanted = targets[:, columns]  # (B, K)
    losses = cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view_as(wanted)


def _logits(model: Any, batch: dict[str, torch.Tensor], columns: torch.Tensor) -> torch.Tensor:
    """Logits of the columns, (B, K, V)."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    shared = shared_tokens(batch) if _may_share(model) else 0
    if shared < SHORTEST_SHARED:
        return model(input_ids=ids, attention_mask=mask, logits_to_keep=columns, use_cache=False).logits
    first = model(input_ids=ids[:1, :shared], use_cache=True, logits_to_keep=1).past_key_values
    for layer in first.layers:
        layer.keys = layer.keys.expand(len(ids), -1, -1, -1)
        layer.values = layer.values.expand(len(ids), -1, -1, -1)
    return model(
        input_ids=ids[:, shared:], attention_mask=mask, past_key_values=first, use_cache=True,
        logits_to_keep=columns - shared,
    ).logits  # fmt: skip


def shared_tokens(batch: dict[str, torch.Tensor]) -> int:
    """Tokens at the beginning that are equal in all rows and end before the first label; 0 for a single row."""
    ids, labels = batch["input_ids"], batch["labels"]
    if len(ids) == 1:
        return 0
    differs = (ids != ids[:1]).any(dim=0) | (batch["attention_mask"] == 0).any(dim=0)
    labelled = (labels != IGNORED).any(dim=0)
    ends = (differs | labelled).nonzero()
    return max(0, int(ends[0]) - 1) if len(ends) else 0


def _may_share(model: Any) -> bool:
    """Only where one row may stand for all: plain caches of every layer, no recomputation, no dropout being drawn."""
    import torch

    config = model.config.get_text_config()
    if getattr(config, "sliding_window", None) or set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
        return False
    if not model.training:
        return True
    recomputed = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    drawn = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())
    return not recomputed and not drawn and not getattr(config, "attention_dropout", 0)
