"""LoRA in the last layers only."""

from __future__ import annotations

import re

import pytest

from tests.models.test_head import label_losses, random_model, some_rows
from tunesmith.core.errors import UsageError
from tunesmith.models.load import Found, load_model
from tunesmith.models.methods import Lora
from tunesmith.models.shape import read_shape
from tunesmith.planning.memory import trained_parameters


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "down_proj")])
@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3"])
def test_only_the_last_layers_are_trained_and_counted(family, targets):
    if family == "phi3" and targets != "all-linear":
        targets = ("qkv_proj", "down_proj")
    plain = random_model(family, num_hidden_layers=4)
    method = Lora(rank=2, last_layers=1, targets=targets)
    trained = {name: p.numel() for name, p in method.put(plain).named_parameters() if p.requires_grad}
    assert {re.search(r"layers\.(\d+)\.", name)[1] for name in trained} == {"3"}
    assert trained_parameters(read_shape(plain.config.to_dict()), method) == sum(trained.values())


def test_nothing_before_them_is_kept_for_the_backward_pass():
    import torch

    def saved(layers: int | None) -> int:
        model = Lora(rank=2, last_layers=layers).put(random_model("llama", num_hidden_layers=6)).train()
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        kept = {}

        def note(tensor):
            if tensor.untyped_storage().data_ptr() not in weights:
                kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            label_losses(model, some_rows())
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    one, two, three, whole = saved(1), saved(2), saved(3), saved(None)
    assert three - two == pytest.approx(two - one, rel=0.01)
    assert whole - three == pytest.approx(3 * (two - one), rel=0.01)


def test_a_saved_adapter_is_loaded_over_its_layers(tmp_path):
    import torch

    base = random_model("llama", num_hidden_layers=3)
    base.save_pretrained(tmp_path / "base")
    method = Lora(rank=2, last_layers=2)
    model = method.put(base)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    method.save(model, tmp_path / "adapter")
    again = load_model(Found("it", tmp_path / "base", adapter=tmp_path / "adapter"))
    merged = load_model(Found("it", tmp_path / "base", adapter=tmp_path / "adapter"), merged=True)
    ids = some_rows()["input_ids"]
    wanted = model.eval()(input_ids=ids).logits
    assert torch.equal(again(input_ids=ids).logits, wanted)
    assert torch.allclose(merged(input_ids=ids).logits, wanted, atol=1e-4)


def test_more_layers_than_there_are():
    with pytest.raises(UsageError, match="the model has 2 layers. Got 3"):
        Lora(last_layers=3).put(random_model("llama"))
    with pytest.raises(UsageError, match="the model has 2 layers. Got 3"):
        trained_parameters(read_shape(random_model("llama").config.to_dict()), Lora(last_layers=3))
    with pytest.raises(UsageError, match="lm_head stands in no layer"):
        Lora(last_layers=1, targets=("lm_head",)).put(random_model("llama"))
