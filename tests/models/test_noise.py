"""NEFTune's noise on embeddings: as large as the paper says in every row, equal to transformers' on one row."""

from __future__ import annotations

import pytest
import torch
from transformers.integrations.neftune import neftune_post_forward_hook

from tests.models.test_head import random_model, some_rows
from tunesmith.models.head import label_losses

ALPHA = 5.0


def embeddings(model, **wishes) -> list[torch.Tensor]:
    """What the embeddings were in `label_losses`, without noise and with it."""
    seen = []
    hook = model.model.layers[0].register_forward_pre_hook(
        lambda module, words, named: seen.append((words[0] if words else named["hidden_states"]).detach()),
        with_kwargs=True,
    )
    label_losses(model, some_rows(**wishes), noise=1e-12)
    label_losses(model, some_rows(**wishes), noise=ALPHA)
    hook.remove()
    return seen


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_every_row_has_the_noise_of_its_own_length(family):
    plain, noisy = embeddings(random_model(family).train())
    lengths, drawn = [40, 40, 30, 40], noisy - plain
    if family == "llama":  # in one sequence, the shorter row first
        lengths = sorted(lengths)
        noise = drawn[0, : sum(lengths)].split(lengths)
    else:
        noise = [row[:length] for row, length in zip(drawn, lengths, strict=True)]
    for row, length in enumerate(lengths):
        limit = ALPHA / (length * 32) ** 0.5
        drawn = noise[row]
        assert float(drawn.abs().max()) == pytest.approx(limit, rel=0.02)
        assert float(drawn.std()) == pytest.approx(limit / 3**0.5, rel=0.05)  # uniform
    assert not torch.allclose(noise[2][:17], noise[3][:17])  # also where rows begin alike


def test_one_row_is_that_of_transformers():
    batch = some_rows(1, width=48)  # nothing is filled up
    batch["attention_mask"][:] = 1  # theirs takes the padded length
    model = random_model("llama").train()
    torch.manual_seed(7)
    ours = label_losses(model, batch, noise=ALPHA)
    layer = model.get_input_embeddings()
    layer.neftune_noise_alpha = ALPHA
    layer.register_forward_hook(neftune_post_forward_hook)
    torch.manual_seed(7)
    theirs = label_losses(model, batch)
    assert torch.allclose(ours, theirs, atol=1e-5)
    torch.manual_seed(8)
    assert not torch.allclose(ours, label_losses(model, batch), atol=1e-3)


def test_nothing_is_left_behind():
    model, batch = random_model("llama").eval(), some_rows()
    before = label_losses(model, batch)
    label_losses(model, batch, noise=ALPHA)
    assert torch.equal(label_losses(model, batch), before)
