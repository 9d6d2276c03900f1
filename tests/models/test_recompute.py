"""Recomputed activations: the same gradients, and nothing kept where no gradient goes."""

from __future__ import annotations

import weakref

import pytest

from tests.models.test_head import label_losses, losses_and_gradients, random_model, some_rows
from tunesmith.models.methods import Freeze, Full, Lora
from tunesmith.models.recompute import recompute_activations

METHODS = [
    (Full(), [True] * 4), (Lora(rank=2), [True] * 4), (Lora(rank=2, last_layers=2), [False, False, True, True]),
    (Freeze(layers=1), [False, False, False, True]), (Freeze(layers=1, extra=("norm", "lm_head")), [False, False, False, True]),
    (Freeze(layers=1, extra=("embed_tokens",)), [True] * 4), (Freeze(layers=0, extra=("lm_head",)), [False] * 4),
    (Lora(rank=2, last_layers=1, full_modules=("lm_head",)), [False, False, False, True]),
    (Lora(rank=2, last_layers=1, full_modules=("embed_tokens",)), [True] * 4),
]  # fmt: skip


@pytest.mark.parametrize(("method", "alive"), METHODS, ids=lambda it: getattr(it, "kind", ""))
def test_states_are_kept_where_a_gradient_goes(method, alive):
    import torch

    def made():
        torch.manual_seed(5)
        return method.put(random_model("llama", num_hidden_layers=4)).train()

    plain, again = made(), made()
    recompute_activations(again)
    wanted, found = (losses_and_gradients(model, some_rows(), label_losses) for model in (plain, again))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(wanted, found, strict=True))
    states = []
    for layer in (
        module for name, module in again.named_modules() if name.endswith(tuple(f"layers.{n}" for n in range(4)))
    ):
        layer.register_forward_pre_hook(lambda module, inputs: states.append(weakref.ref(inputs[0])))
    losses = label_losses(again, some_rows())
    assert [state() is not None for state in states] == alive
    losses.sum().backward()
