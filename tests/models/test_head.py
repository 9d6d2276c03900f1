"""Losses of labelled tokens equal those of the whole logits."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from tunesmith.models import head
from tunesmith.models.head import label_losses
from tunesmith.models.load import find, load_model
from tunesmith.models.methods import Full, Lora


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


def shared_batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(0, 250, (4, 40))
    ids[:, :17] = ids[0, :17]
    ids[:, 17] = torch.arange(4)  # rows part here
    mask = torch.ones_like(ids)
    mask[2, 30:] = 0
    labels = torch.full_like(ids, -100)
    labels[:, 20:35] = ids[:, 20:35]
    labels[mask == 0] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def losses_and_gradients(model, batch) -> tuple[torch.Tensor, torch.Tensor]:
    model.zero_grad()
    losses = label_losses(model, batch)
    losses.sum().backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return losses.detach(), torch.cat(gradients)


@pytest.mark.parametrize("method", [Full(), Lora(rank=4)], ids=["full", "lora"])
def test_a_shared_beginning_changes_neither_losses_nor_gradients(tiny_model, monkeypatch, method):
    model = method.put(load_model(find(str(tiny_model))))
    model.train()
    batch = shared_batch()
    assert head.shared_tokens(batch) == 16
    lengths = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    shared = losses_and_gradients(model, batch)
    assert lengths == [(1, 16), (4, 24)]
    monkeypatch.setattr(head, "SHORTEST_SHARED", 10**6)
    plain = losses_and_gradients(model, batch)
    assert torch.allclose(shared[0], plain[0], atol=1e-5)
    assert torch.allclose(shared[1], plain[1], atol=1e-5)


def test_what_is_shared_ends_before_labels_padding_and_the_last_common_token():
    batch = shared_batch()
    batch["labels"][1, 9] = 5
    assert head.shared_tokens(batch) == 8
    batch["attention_mask"][0, 4] = 0
    assert head.shared_tokens(batch) == 3
    assert head.shared_tokens({name: value[:1] for name, value in batch.items()}) == 0


def test_nothing_is_shared_while_dropout_is_drawn(tiny_model):
    model = Lora(dropout=0.1).put(load_model(find(str(tiny_model))))
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    label_losses(model.train(), shared_batch())
    assert len(calls) == 1
    label_losses(model.eval(), shared_batch())
    assert len(calls) == 3
