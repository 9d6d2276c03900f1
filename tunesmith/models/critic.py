"""A policy with a value head beside it: the expected reward at every token of an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tunesmith.core.examples import IGNORED
from tunesmith.models.head import label_losses
from tunesmith.models.whole import trained_part

FILE = "critic/value_head.safetensors"
"""In a folder of its own: weights of the policy lie beside it by any name."""


class ActorCritic(nn.Module):
    """The policy as the method has put it, and a linear layer over its last hidden states, from zero on, in fp32."""

    kl: torch.Tensor
    """What a nat of divergence costs now; PPO may adapt it."""

    def __init__(self, policy: Any, kl: float) -> None:
        super().__init__()
        self.policy = policy
        width = policy.config.get_text_config().hidden_size
        self.value = nn.Linear(width, 1, device=policy.device)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)
        self.register_buffer("kl", torch.tensor(kl))

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """As `label_losses`, and the values of the same places: two (B, T - 1), 0 where there is no label.

        A value is read from the state that predicts the token, so it knows the answer up to the token before.
        It is `forward` because that is what accelerate computes in the run's precision.
        """
        seen: list[torch.Tensor] = []
        head = trained_part(self.policy.get_output_embeddings())
        handle = head.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
        try:
            losses = label_losses(self.policy, batch)
        finally:
            handle.remove()
        labelled = batch["labels"][:, 1:] != IGNORED
        states = seen[0][0] if len(seen[0]) == 1 else seen[0][labelled[:, labelled.any(dim=0)]]  # (labels, D)
        with torch.autocast(states.device.type, enabled=False):
            values = self.value(states.float())[:, 0]
        return losses, torch.zeros_like(losses).masked_scatter(labelled, values)

    def save(self, folder: Path) -> None:
        """Write the value head and the price of divergence."""
        from safetensors.torch import save_file

        (folder / FILE).parent.mkdir()
        save_file({**{f"value.{k}": v for k, v in self.value.state_dict().items()}, "kl": self.kl}, folder / FILE)

    def restore(self, folder: Path) -> None:
        """Put them back, bit for bit."""
        from safetensors.torch import load_file

        outcome = self.load_state_dict(load_file(folder / FILE), strict=False)
        assert not outcome.unexpected_keys, outcome.unexpected_keys
