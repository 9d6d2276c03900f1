"""LoRA with parts trained in full: counted, fp32, saved for plain peft, tied where the model is tied."""

from __future__ import annotations

import pytest
import torch

from tests.models.methods.conftest import logits, steps, stored
from tests.models.test_head import head, random_model, same, some_rows, watch
from tunesmith.models.load import Found, load_model
from tunesmith.models.methods import Lora
from tunesmith.models.shape import read_shape

WISHES = [("embed_tokens",), ("lm_head",), ("embed_tokens", "lm_head"), ("norm", "lm_head")]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("names", WISHES, ids="+".join)
@pytest.mark.parametrize("family", ["llama", "gemma", "phi3"])
def test_the_plan_counts_them_and_losses_are_exact(family, names, tied):
    model = random_model(family, tie_word_embeddings=tied)
    method, shape = Lora(rank=2, full_modules=names), read_shape(model.config.to_dict())
    tuned = method.put(model)
    assert method.footprint(shape).trained == sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    same(tuned.train(), some_rows())


def test_the_head_sees_labelled_tokens_only():
    model, batch = Lora(rank=2, full_modules=("lm_head",)).put(random_model("llama")).train(), some_rows()
    seen = watch(model)
    head.label_losses(model, batch)
    assert seen["head"] == [(1, int((batch["labels"] != -100).sum()))]
    with model.disable_adapter():
        original = head.label_losses(model, batch)
    assert torch.allclose(original, head.label_losses(random_model("llama").train(), batch), atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("names", WISHES, ids="+".join)
def test_reloaded_logits_are_equal(saved, tmp_path, names, tied, precision):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    found, method = saved(tie_word_embeddings=tied), Lora(rank=2, full_modules=names)
    model = method.put(method.load(found, precision))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad and "lora" not in name}
    for name, p in trained.items():
        start = stored(found)[name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")]
        assert p.dtype == torch.float32
        assert torch.equal(p, start), "masters start from the stored numbers"
    first, *_, last = steps(model, 4, 0.01, bf16=precision == "bf16")
    assert last < first
    method.save(model, tmp_path / "made")
    again = load_model(Found("it", found.base, adapter=tmp_path / "made"))
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(found.base), tmp_path / "made")
    merged = load_model(Found("it", found.base, adapter=tmp_path / "made"), merged=True)
    for name, p in trained.items():
        assert torch.equal(again.get_parameter(name), p)
    assert torch.equal(logits(again), logits(plain))
    assert torch.allclose(logits(again), logits(merged), atol=1e-4)
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) == tied
    if precision == "fp32":
        assert torch.equal(logits(again), logits(model))


def test_restored_bit_for_bit(saved, tmp_path):
    found, method = saved(tie_word_embeddings=True), Lora(rank=2, full_modules=("lm_head",))
    model = method.put(method.load(found, "bf16"))
    steps(model, bf16=True)
    method.save(model, tmp_path)
    again = method.put(method.load(found, "bf16"))
    method.restore(again, tmp_path)
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
