"""A decoder that begins in its middle gives the losses and gradients of the whole one."""

from __future__ import annotations

import pytest
import torch

from decoders import losses_and_gradients, random_model, some_rows
from tunesmith.models import joined
from tunesmith.models.head import label_losses
from tunesmith.models.methods import Freeze, Lora
from tunesmith.models.recompute import recompute_activations
from tunesmith.models.split import frozen_layers, not_repeatable, states_before

METHODS = [Lora(rank=4, last_layers=2), Freeze(layers=2), Freeze(layers=0, extra=("norm",))]


def split_batch(model, batch, entry):
    states = states_before(model, batch, entry)
    return {**batch, "states": states, "entry": torch.full((len(states),), entry)}


@pytest.mark.parametrize("method", METHODS, ids=["lora", "freeze", "norm"])
@pytest.mark.parametrize("family", joined.FAMILIES)
def test_losses_and_gradients_are_those_of_the_whole_model(family, method):
    model, batch = random_model(family, num_hidden_layers=5), some_rows()
    assert not_repeatable(model) is None
    cut = split_batch(model, batch, entry := 5 if method == METHODS[2] else 3)
    tuned = method.put(model)
    assert frozen_layers(tuned) == entry
    whole = losses_and_gradients(tuned, batch, label_losses)
    ours = losses_and_gradients(tuned, cut, label_losses)
    torch.testing.assert_close(ours, whole, rtol=1e-4, atol=1e-5)
    assert whole[1].abs().max() > 0


def test_the_front_layers_do_not_run():
    model, batch = random_model("llama", num_hidden_layers=5), some_rows()
    cut = split_batch(model, batch, 3)
    for layer in model.model.layers[:3]:
        layer.forward = None
    assert label_losses(model, cut).sum() > 0
    with pytest.raises(TypeError):
        label_losses(model, batch)


def test_recomputed_layers_begin_with_the_same_states():
    batch = some_rows()
    found = []
    for recompute in (False, True):
        model = random_model("llama", num_hidden_layers=5)
        cut = split_batch(model, batch, 3)
        torch.manual_seed(0)
        tuned = Lora(rank=4, last_layers=2, init="gaussian").put(model)
        if recompute:
            recompute_activations(tuned)
        found.append(losses_and_gradients(tuned.train(), cut, label_losses))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize(
    ("method", "entry"),
    [(Lora(rank=4), 0), (Lora(rank=4, last_layers=1, full_modules=("embed_tokens",)), 0), (Freeze(layers=4), 1)],
)
def test_how_many_layers_train_nothing(method, entry):
    assert frozen_layers(method.put(random_model("llama", num_hidden_layers=5))) == entry


def test_models_whose_layers_cannot_be_left_out_are_named():
    assert "gemma3_text" in str(not_repeatable(random_model("gemma3_text")))
    assert "0.1" in str(not_repeatable(random_model("llama", attention_dropout=0.1)))
