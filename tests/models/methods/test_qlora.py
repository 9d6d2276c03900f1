"""QLoRA: the memory of four bits, peft's own losses and gradients, adapters that go over the base as it is stored."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from tests.models.methods.conftest import logits, steps, stored
from tests.models.test_head import label_losses, same, some_rows, whole_losses
from tunesmith.core import files
from tunesmith.core.errors import MissingExtra, ModelError, UsageError
from tunesmith.models.load import Found, load_model
from tunesmith.models.methods import Lora, Qlora
from tunesmith.models.shape import read_shape

WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
"""Linear layers of whole blocks of 64 x 256 weights, as real models have them."""


def four_bit(model) -> dict:
    from bitsandbytes.nn.modules import Linear4bit

    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}


def held_bytes(module) -> int:
    state = module.weight.quant_state
    scales = state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0)
    return module.weight.nbytes + scales


def put(method, found, precision="fp32"):
    """The method on its base, with adapters that say something."""
    model = method.put(method.load(found, precision))
    torch.manual_seed(2)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


@pytest.mark.parametrize(("double", "bits"), [(True, 4.126953125), (False, 4.5)])
def test_bits_of_a_weight_by_hand(saved, double, bits):
    """4 bits; a scale of 8 bits for 64 weights and of 32 for 64 x 256, or of 32 for 64."""
    found, method = saved(**WIDE), Qlora(double_quantization=double)
    modules = four_bit(method.load(found, "fp32"))
    weights = sum(module.in_features * module.out_features for module in modules.values())
    assert len(modules) == 3 * 7
    assert 8 * sum(map(held_bytes, modules.values())) / weights == bits
    footprint = method.footprint(read_shape(found.base))
    assert (footprint.quantized, footprint.quantized_bits) == (weights, bits)


@pytest.mark.parametrize("tied", [False, True])
def test_head_and_embedding_are_not_quantized(saved, tied):
    model = Qlora().load(saved(tie_word_embeddings=tied), "bf16")
    assert type(model.lm_head) is torch.nn.Linear
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert model.lm_head.weight.dtype == torch.bfloat16


@pytest.mark.peer
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("double", [True, False])
def test_losses_and_gradients_are_those_of_peft(saved, double, tied):
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    found = saved(tie_word_embeddings=tied)
    ours = put(Qlora(rank=4, double_quantization=double), found)
    wish = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double, bnb_4bit_compute_dtype=torch.float32
    )  # fmt: skip
    plain = AutoModelForCausalLM.from_pretrained(found.base, quantization_config=wish, dtype=torch.float32)
    plain = prepare_model_for_kbit_training(plain, use_gradient_checkpointing=False)
    plain = get_peft_model(plain, LoraConfig(r=4, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    plain.load_state_dict({n: p for n, p in ours.state_dict().items() if "lora_" in n}, strict=False)
    batch, found_losses = some_rows(), []
    for model, how in ((ours, label_losses), (plain, whole_losses)):
        model.train()
        found_losses.append(how(model, batch))
        found_losses[-1].sum().backward()
    assert torch.allclose(*found_losses, atol=2e-5)
    theirs = dict(plain.named_parameters())
    for name, p in ours.named_parameters():
        if p.requires_grad:
            assert torch.allclose(p.grad, theirs[name].grad, atol=2e-5 * float(theirs[name].grad.abs().max())), name


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gemma2", "gpt2"])
def test_losses_of_every_family_equal_those_of_whole_logits(saved, family):
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4} if family == "gpt2" else {}
    model = put(Qlora(rank=4), saved(family, **shape))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    same(model.train(), some_rows())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_evaluation_before_training_takes_no_gradient_away(saved, precision):
    """bitsandbytes gives weights another layout at a first evaluation on some processors; it has no backward pass."""

    def gradients(evaluate: bool) -> list[torch.Tensor]:
        model = put(Qlora(rank=4), saved(), precision)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            if evaluate:
                with torch.no_grad():
                    label_losses(model.eval(), some_rows())
            label_losses(model.train(), some_rows()).sum().backward()
        return [p.grad for p in model.parameters() if p.requires_grad]

    for once, twice in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(once, twice)
        assert twice.abs().sum() > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_adapters_move_the_base_does_not_and_losses_fall(saved, precision):
    model = put(Qlora(rank=4), saved(), precision)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = steps(model, 10, rate=0.01, bf16=precision == "bf16")
    assert losses[-1] < losses[0] - 0.1
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != p.requires_grad, name
        assert p.dtype == torch.float32 or not p.requires_grad


def test_the_adapter_goes_over_the_base_as_it_is_stored(saved, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    found, method = saved(), Qlora(rank=4, full_modules=("lm_head",))
    model = put(method, found)
    steps(model)
    method.save(model, tmp_path / "made")
    again = load_model(Found("it", found.base, adapter=tmp_path / "made"))
    state = again.state_dict()
    for name, tensor in stored(found).items():
        module = "base_model.model." + name.removesuffix(".weight")
        (part,) = (
            state[it]
            for it in state
            if it in {f"{module}{at}.weight" for at in ("", ".base_layer", ".original_module")}
        )
        assert torch.equal(part, tensor), name
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(found.base), tmp_path / "made")
    assert torch.equal(logits(again), logits(plain))
    assert not torch.equal(logits(again), logits(model)), "what was trained stood on a base in four bits"
    assert torch.nn.functional.cosine_similarity(logits(again).flatten(), logits(model).flatten(), 0) > 0.9


def test_a_module_that_is_quantized_is_not_trained_in_full(saved):
    with pytest.raises(UsageError, match="method.full_modules: names no such part of this model. Got up_proj"):
        method = Qlora(full_modules=("up_proj",))
        method.put(method.load(saved(), "fp32"))


def test_without_bitsandbytes_the_extra_is_named(saved, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else real(name, *a)
    )
    with pytest.raises(MissingExtra, match=r"bitsandbytes is not installed. pip install 'tunesmith\[qlora\]'"):
        Qlora().load(saved(), "fp32")


def test_a_base_that_is_quantized_already(saved):
    found = saved()
    config = files.read_json(found.base / "config.json")
    files.write_json(found.base / "config.json", {**config, "quantization_config": {"quant_method": "gptq"}})
    with pytest.raises(ModelError, match="is quantized already"):
        Qlora().load(found, "fp32")


def test_options_are_those_of_lora():
    shared = {"rank", "alpha", "dropout", "targets", "last_layers", "rslora", "plus_ratio", "dora", "full_modules"}
    assert set(Qlora.model_fields) - {"kind", "double_quantization"} == shared
    for name in shared:
        assert Qlora.model_fields[name].annotation == Lora.model_fields[name].annotation
        assert Qlora.model_fields[name].default == Lora.model_fields[name].default
