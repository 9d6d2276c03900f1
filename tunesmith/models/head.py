"""Cross entropy of the labelled tokens only: the output head never sees positions that nobody trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith.core.examples import IGNORED

if TYPE_CHECKING:
    import torch


def label_losses(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross entropy of every labelled token, in fp32.

    `batch` holds input_ids, attention_mask and labels, each (B, T); the token at t + 1 is predicted from t. Logits are
    computed for the columns in which any row has a label. Returns (B, K) with 0 where a row has none; the sum over
    K is the row's negative log-likelihood in nats.
    """
    from torch.nn.functional import cross_entropy

    targets = batch["labels"][:, 1:]  # (B, T-1)
    columns = (targets != IGNORED).any(dim=0).nonzero().squeeze(1)  # (K,)
    logits = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], logits_to_keep=columns, use_cache=False
    ).logits  # (B, K, V)
    wanted = targets[:, columns]  # (B, K)
    losses = cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view_as(wanted)
