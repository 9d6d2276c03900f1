"""What LoRA starts from: PiSSA changes the base in memory, so what is saved must fit the base on disk."""

from __future__ import annotations

import json

import pytest
import torch

from tests.models.methods.conftest import logits, steps, stored
from tests.models.test_head import random_model
from tunesmith.core.errors import UsageError
from tunesmith.models import pissa
from tunesmith.models.load import Found, load_model
from tunesmith.models.methods import Lora
from tunesmith.models.shape import read_shape

KINDS = ["pissa", "pissa_niter_4"]


def started(method, found, precision="fp32"):
    torch.manual_seed(42)
    return method.put(method.load(found, precision))


@pytest.mark.parametrize("init", ["gaussian", "orthogonal", *KINDS])
def test_every_start_leaves_the_model_as_it_was(saved, init):
    found = saved()
    wanted = logits(load_model(found))
    made = started(Lora(rank=4, init=init), found)
    assert torch.allclose(logits(made), wanted, atol=1e-4)
    drawn = {name: p for name, p in made.named_parameters() if "lora_B" in name}
    assert all(bool(p.any()) == (init != "gaussian") for p in drawn.values())


def test_pissa_takes_the_largest_singular_values_out_of_the_base(saved):
    found = saved()
    model = started(Lora(rank=4, init="pissa"), found)
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    before = torch.linalg.svdvals(stored(found)["model.layers.0.mlp.up_proj.weight"])
    rest = torch.linalg.svdvals(layer.get_base_layer().weight)
    assert torch.allclose(rest[:-4], before[4:], atol=1e-4)
    assert torch.allclose(torch.linalg.svdvals(layer.get_delta_weight("default"))[:4], before[:4], atol=1e-4)


@pytest.mark.parametrize(
    "more", [{}, {"rslora": True}, {"dora": True}, {"last_layers": 1}, {"full_modules": ("lm_head",)}]
)
@pytest.mark.parametrize("init", KINDS)
def test_what_is_saved_goes_over_the_original_base(saved, tmp_path, init, more):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    found, method = saved(), Lora(rank=4, init=init, **more)
    model = started(method, found)
    untrained = logits(model)
    steps(model, rate=0.01)
    method.save(model, tmp_path / "made")
    again = load_model(Found("it", found.base, adapter=tmp_path / "made"))
    assert torch.allclose(logits(again), logits(model), atol=2e-4)
    assert not torch.allclose(logits(again), untrained, atol=1e-2)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(found.base), tmp_path / "made")
    assert torch.equal(logits(plain), logits(again))
    merged = load_model(Found("it", found.base, adapter=tmp_path / "made"), merged=True)
    assert torch.allclose(logits(merged), logits(model), atol=2e-4)


def test_the_untrained_model_is_not_the_one_without_adapter(saved):
    from tunesmith.training.rollout import without_adapter

    with pytest.raises(UsageError, match="method.init: with pissa a part of the untrained model is in the adapter"):
        without_adapter(started(Lora(rank=4, init="pissa"), saved()))


@pytest.mark.peer
@pytest.mark.parametrize("rslora", [False, True])
def test_the_conversion_is_that_of_peft(saved, tmp_path, rslora):
    from safetensors.torch import load_file

    method = Lora(rank=4, init="pissa", rslora=rslora)
    model = started(method, saved())
    model.peft_config["default"].init_lora_weights = True  # as peft's guide says, before the start is saved
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = "pissa"
    steps(model)
    method.save(model, tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    ours, theirs = (load_file(tmp_path / it / "adapter_model.safetensors") for it in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    configs = [json.loads((tmp_path / it / "adapter_config.json").read_text()) for it in ("ours", "theirs")]
    for key in ("r", "lora_alpha", "init_lora_weights", "use_rslora"):
        assert configs[0][key] == configs[1][key], key


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("init", KINDS)
def test_restored_bit_for_bit(saved, tmp_path, init, precision):
    found, method = saved(), Lora(rank=4, init=init, full_modules=("norm",))
    model = started(method, found, precision)
    steps(model, bf16=precision == "bf16")
    method.save(model, tmp_path / "made")
    again = started(method, found, precision)
    method.restore(again, tmp_path / "made")
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    assert all(torch.equal(t, getattr(model, pissa.START)[n]) for n, t in getattr(again, pissa.START).items())


def test_another_start_is_corrected(saved, tmp_path):
    """The singular vectors of another machine, here of another seed of the approximation."""
    found, method = saved(), Lora(rank=4, init="pissa_niter_4")
    model = started(method, found)
    steps(model)
    method.save(model, tmp_path / "made")
    torch.manual_seed(7)
    again = method.put(method.load(found, "fp32"))
    method.restore(again, tmp_path / "made")
    assert torch.allclose(logits(again), logits(model), atol=2e-4)
    method.save(again, tmp_path / "again")
    reloaded = load_model(Found("it", found.base, adapter=tmp_path / "again"))
    assert torch.allclose(logits(reloaded), logits(model), atol=2e-4)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"init": "pissa", "rank": 17}, "method.rank: pissa takes so many singular values; a weight has 16. Got 17"),
        ({"init": "orthogonal", "rank": 3}, "method.rank: must be even with init orthogonal. Got 3"),
        ({"init": "pissa", "targets": ("lm_head",)}, "pissa would change the embedding that is tied"),
        ({"targets": ("lm_head",), "full_modules": ("lm_head",)}, "lm_head has an adapter already"),
        (
            {"full_modules": ("mlp",)},
            "method.full_modules: names no such part of this model. Got mlp. Known: embed_tokens",
        ),
    ],
)
def test_wishes_that_do_not_fit(wish, message):
    shape = read_shape(random_model("llama", tie_word_embeddings=True).config.to_dict())
    with pytest.raises(UsageError, match=message):
        Lora(**{"rank": 4, **wish}).footprint(shape)
