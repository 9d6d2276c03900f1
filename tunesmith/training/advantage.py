"""How much better than expected a token or an answer was: GAE, whitening, group means. Pure functions of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

EPSILON = 1e-4
"""Beside the standard deviation of a group (as in TRL), so that equal rewards give no advantage."""


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, *, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalized advantage estimation (Schulman et al. 2015, arXiv 1506.02438, equations 11 to 16).

    All (B, T); `mask` is true for the tokens of the answers, which end without a next value. Returns (advantages, returns),
    0 outside the mask; returns are advantages + values.
    """
    import torch

    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        here = mask[:, t].to(rewards.dtype)
        after = values[:, t + 1] * mask[:, t + 1] if t + 1 < rewards.shape[1] else 0.0
        delta = rewards[:, t] + gamma * after - values[:, t]
        following = (delta + gamma * lam * following) * here
        advantages[:, t] = following
    return advantages, (advantages + values) * mask


def whiten(parts: list[torch.Tensor], masks: list[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors shifted and scaled so that all their masked numbers together have mean 0 and variance 1; 0 elsewhere."""
    import torch

    numbers = torch.cat([part[mask] for part, mask in zip(parts, masks, strict=True)])
    scale = torch.rsqrt(numbers.var() + 1e-8) if len(numbers) > 1 else 1.0
    return [(part - numbers.mean()) * scale * mask for part, mask in zip(parts, masks, strict=True)]


def group_advantages(rewards: torch.Tensor, *, scaled: bool) -> torch.Tensor:
    """Rewards (groups, answers) less the mean of their group, over its standard deviation where `scaled`.

    Shao et al. 2024, arXiv 2402.03300, section 4.1.2; without scaling Liu et al. 2025, arXiv 2503.20783.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / (rewards.std(dim=1, keepdim=True) + EPSILON) if scaled else centred
