"""Small models, tied and not, and a few real steps with a method."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.test_head import random_model, some_rows
from tests.training.conftest import _one_thread, train  # noqa: F401 - fixtures
from tunesmith.models.head import label_losses
from tunesmith.models.load import Found


@pytest.fixture
def saved(tmp_path):
    """`saved(family, **config)` -> a random model on disk, as `find` gives it."""

    def make(family: str = "llama", **more: Any) -> Found:
        folder = tmp_path / f"{family}-{len(list(tmp_path.iterdir()))}"
        random_model(family, **{"num_hidden_layers": 3, **more}).save_pretrained(folder)
        return Found("it", folder)

    return make


def steps(model: Any, count: int = 3, rate: float = 0.05, *, bf16: bool = False) -> list[float]:
    """Losses of a few AdamW steps on one batch."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    losses = []
    for _ in range(count):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = label_losses(model, some_rows()).sum() / 60
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def logits(model: Any) -> torch.Tensor:
    """What a model says to the rows."""
    with torch.no_grad():
        return model.eval()(input_ids=some_rows()["input_ids"]).logits


def stored(found: Found) -> dict[str, torch.Tensor]:
    """The tensors of a model's file."""
    from safetensors.torch import load_file

    return load_file(found.base / "model.safetensors")
