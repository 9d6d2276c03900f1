"""Losses of labelled tokens equal those of the whole logits."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from tunesmith.models.head import label_losses
from tunesmith.models.load import find, load_model


def test_only_labelled_positions_are_scored_and_the_loss_is_the_same(tiny_model):
    model = load_model(find(str(tiny_model)))
    torch.manual_seed(0)
    ids = torch.randint(0, 250, (3, 12))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    labels = torch.where(torch.rand(3, 12) < 0.4, ids, -100)
    labels[mask == 0] = -100
    labels[:, 0] = -100
    seen = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    ours = label_losses(model, {"input_ids": ids, "attention_mask": mask, "labels": labels})
    whole = model(input_ids=ids, attention_mask=mask).logits
    wanted = cross_entropy(whole[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum", ignore_index=-100)
    assert torch.allclose(ours.sum(), wanted, rtol=1e-6)
    assert seen[0] == (labels[:, 1:] != -100).any(0).sum() < 11
    assert int((ours > 0).sum()) == int((labels[:, 1:] != -100).sum())
