"""Bottleneck adapters: where they stand, what they cost, that they start without effect, and how they are saved."""

from __future__ import annotations

import copy
import re
import shutil

import pytest
import torch

from tests.models.test_head import JOINED, random_model, same, some_rows
from tunesmith.core import files
from tunesmith.core.errors import ModelError, UsageError
from tunesmith.models.adapter import Adapter, adapters_of, switched_off
from tunesmith.models.head import label_losses
from tunesmith.models.joined import FAMILIES, may_join
from tunesmith.models.load import find, load_model
from tunesmith.models.methods import Bottleneck


def stir(model) -> None:
    for name, weight in model.named_parameters():
        if ".bottleneck.up." in name:
            torch.nn.init.normal_(weight, std=0.3)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 23)[None]).logits


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_the_adapter_by_hand(activation):
    torch.manual_seed(0)
    adapter, x = Adapter(6, 2, activation), torch.randn(2, 3, 6)
    assert torch.equal(adapter(x), x), "without effect as it starts"
    torch.nn.init.normal_(adapter.up.weight)
    middle = x @ adapter.down.weight.T + adapter.down.bias
    bent = {"relu": middle.clamp(min=0), "gelu": torch.nn.GELU()(middle), "silu": middle * middle.sigmoid()}[activation]
    assert torch.allclose(adapter(x), x + bent @ adapter.up.weight.T + adapter.up.bias, atol=1e-6)


@pytest.mark.parametrize("family", [*FAMILIES, "gemma2", "gemma3_text", "gpt2"])
@pytest.mark.parametrize("after", ["mlp", "both"])
def test_every_family_starts_as_it_was_and_its_losses_are_those_of_the_whole(family, after):
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4} if family == "gpt2" else {}
    plain = random_model(family, **shape).eval()
    before, kind = logits(plain), type(plain)
    model = Bottleneck(after=after).put(plain)
    assert type(model) is kind
    assert torch.equal(logits(model), before)
    stir(model)
    assert not torch.allclose(logits(model), before, atol=1e-3)
    same(model, some_rows())


def test_switched_off_the_model_is_the_untrained_one():
    plain = random_model("llama").eval()
    before = logits(plain)
    model = Bottleneck(after="both").put(plain)
    stir(model)
    with switched_off(adapters_of(model)):
        assert torch.equal(logits(model), before)
    assert not torch.allclose(logits(model), before, atol=1e-3)


def test_a_batch_still_goes_through_as_one_sequence():
    model = Bottleneck().put(random_model("llama")).train()
    assert may_join(model)
    seen: list[tuple[int, ...]] = []
    model.get_decoder().layers[0].register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[:2])))
    label_losses(model, some_rows())
    assert seen == [(1, JOINED)]


def test_recomputed_activations_go_through_the_adapters_too():
    model = Bottleneck().put(random_model("llama")).train()
    stir(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    same(model, some_rows())


@pytest.mark.parametrize(
    ("method", "places"),
    [
        (Bottleneck(), {("mlp", n) for n in "0123"}),
        (Bottleneck(last_layers=1), {("mlp", "3")}),
        (Bottleneck(after="both", last_layers=2), {(half, n) for half in ("mlp", "self_attn") for n in "23"}),
    ],
)
def test_only_the_adapters_in_their_places_are_trained(method, places):
    model = method.put(random_model("llama", num_hidden_layers=4)).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {re.search(r"layers\.(\d)\.(\w+)\.bottleneck\.", name).group(2, 1) for name in trained} == places
    stir(model)
    before |= {name: p.detach().clone() for name, p in model.named_parameters()}
    label_losses(model, some_rows()).sum().backward()
    torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01).step()
    assert {name for name, p in model.named_parameters() if not torch.equal(p, before[name])} == trained


def test_adapters_are_fp32_beside_a_bf16_base():
    model = Bottleneck().put(random_model("llama").bfloat16())
    kinds = {name: p.dtype for name, p in model.named_parameters()}
    assert {dtype for name, dtype in kinds.items() if "bottleneck" in name} == {torch.float32}
    assert {dtype for name, dtype in kinds.items() if "bottleneck" not in name} == {torch.bfloat16}
    stir(model)
    assert logits(model).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        label_losses(model, some_rows()).sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("after", ["mlp", "both"])
def test_never_more_than_five_per_cent(after):
    plain = random_model("llama")
    base = sum(p.numel() for p in plain.parameters())
    model = Bottleneck(after=after).put(plain)
    added = sum(p.numel() for p in model.parameters()) - base
    one_more = 2 * 32 + 1  # what a bottleneck that is wider by one has more, in each place
    places = 4 if after == "both" else 2
    assert added <= 0.05 * base < added + places * one_more
    with pytest.raises(
        UsageError, match=r"method.size: .*more than 5% of the model's \d+ parameters. Got 64. Take at most"
    ):
        Bottleneck(size=64, after=after).put(random_model("llama"))


def test_what_cannot_be_put_on_is_said_in_one_line():
    with pytest.raises(UsageError, match="method.last_layers: the model has 2 layers. Got 3"):
        Bottleneck(last_layers=3).put(random_model("llama"))
    small = random_model(
        "llama", num_hidden_layers=2, vocab_size=3, intermediate_size=8, num_key_value_heads=1, head_dim=1
    )
    with pytest.raises(UsageError, match="method.size: .*Got 1. Adapters in fewer places"):
        Bottleneck().put(small)
    odd = random_model("llama", num_hidden_layers=1)
    odd.model.layers[0].feed = odd.model.layers[0].mlp
    del odd.model.layers[0].mlp
    with pytest.raises(ModelError, match="LlamaDecoderLayer: has no part named mlp. Got"):
        Bottleneck().put(odd)


@pytest.fixture
def saved(tiny_model, tmp_path):
    """A stirred model, and the folder its adapters were saved in."""
    method = Bottleneck(after="both", activation="silu", last_layers=1)
    model = method.put(load_model(find(str(tiny_model)))).eval()
    stir(model)
    method.save(model, tmp_path / "adapter")
    return model, tmp_path / "adapter"


def test_saved_adapters_are_loaded_over_their_base(saved, tiny_model):
    model, folder = saved
    found = find(str(folder))
    assert (found.base, found.adapter) == (tiny_model, folder)
    again = load_model(found).eval()
    assert torch.equal(logits(again), logits(model))
    assert torch.equal(logits(load_model(found, merged=True).eval()), logits(model)), "nothing to merge"
    assert not any(p.requires_grad for p in again.parameters())
    assert files.read_json(folder / "adapter_config.json")["tunesmith_method"] == "bottleneck"


def test_what_is_saved_is_restored_bit_for_bit(saved, tiny_model):
    model, folder = saved
    method = Bottleneck(after="both", activation="silu", last_layers=1)
    again = method.put(load_model(find(str(tiny_model))))
    method.restore(again, folder)
    for (name, wanted), (_, got) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(wanted, got), name


def test_a_copy_of_the_model_has_adapters_of_its_own(saved):
    model, _ = saved
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in twin.named_parameters():
            if "bottleneck.up" in name:
                weight.zero_()
    assert not torch.allclose(logits(twin), logits(model), atol=1e-3)


@pytest.mark.parametrize("damage", ["config", "weights", "value"])
def test_a_damaged_adapter_is_refused_in_one_line(saved, tmp_path, damage):
    _, folder = saved
    folder = shutil.copytree(folder, tmp_path / "damaged")
    told = files.read_json(folder / "adapter_config.json")
    changed = {"config": {"last_layers": 2}, "weights": {"size": told["size"] - 1}, "value": {"size": "wide"}}[damage]
    files.write_json(folder / "adapter_config.json", {**told, **changed})
    with pytest.raises(ModelError, match="does not fit this base model") as raised:
        load_model(find(str(folder)))
    assert "\n" not in str(raised.value)
