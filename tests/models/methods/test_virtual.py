"""Virtual tokens against peft: losses, gradients, what is saved, what a resumed run gets back."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from tests.models.test_head import random_model, some_rows
from tunesmith.core.config import load
from tunesmith.core.errors import UsageError
from tunesmith.models import joined
from tunesmith.models.head import label_losses
from tunesmith.models.load import find, load_model
from tunesmith.models.methods import Prefix, Prompt, PTuning
from tunesmith.models.virtual import leading_logits, opened, virtual_tokens
from tunesmith.verbs.train import TrainConfig

METHODS = {
    "prompt": Prompt(tokens=9),
    "prompt of few": Prompt(tokens=3),
    "prefix": Prefix(tokens=5),
    "prefix projected": Prefix(tokens=5, projection=True, hidden=24),
    "p_tuning": PTuning(tokens=9, hidden=12),
    "p_tuning mlp": PTuning(tokens=5, encoder="mlp", hidden=12),
}
FAMILIES = ("llama", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "gpt2")


def model_of(method, family: str = "llama"):
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "num_key_value_heads": 4} if family == "gpt2" else {}
    model = random_model(family, **shape)
    torch.manual_seed(11)
    return method.put(model)


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def stir(model) -> None:
    """Weights far from their start, so that what is in front is heard."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)


@pytest.mark.parametrize(("family", "rows"), [*((family, 4) for family in FAMILIES), ("llama", 1)])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_losses_and_gradients_are_those_of_peft(method, family, rows):
    model, batch = model_of(method, family).eval(), some_rows(rows)
    losses = label_losses(model, batch)
    assert losses.shape == (rows, 39)
    mean = losses.sum() / (batch["labels"] != -100).sum()
    mean.backward()
    ours = gradients(model)
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    theirs = gradients(model)
    assert mean.item() == pytest.approx(loss.item(), abs=1e-5)
    assert ours.keys() == theirs.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, gradient in ours.items():
        assert torch.allclose(gradient, theirs[name], atol=2e-5 * float(theirs[name].abs().max())), name


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_switched_off_the_model_is_the_untrained_one(method, family):
    model, batch = model_of(method, family).eval(), some_rows()
    with torch.no_grad():
        with model.disable_adapter():
            off = label_losses(model, batch)
            assert (virtual_tokens(model), opened(model).tokens) == (0, 0)
        assert torch.equal(off, label_losses(model.get_base_model(), batch))
        assert not torch.allclose(label_losses(model, batch), off, atol=1e-4)


def test_virtual_embeddings_go_through_the_model_once_and_a_prefix_not_at_all():
    seen: list[tuple[int, int]] = []
    for method in (Prompt(tokens=9), Prefix(tokens=9)):
        model = model_of(method).train()
        model.get_decoder().layers[0].register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[:2])))
        label_losses(model, some_rows())
    assert seen == [(1, 9 + 16 + 3 * 24 + 14 + 1), (4, 40)]  # filled up to a multiple of 16
    assert not joined.may_join(model)


def test_a_trained_first_token_is_left_out_as_without_virtual_tokens():
    batch = some_rows()
    batch["labels"][:, 0] = batch["input_ids"][:, 0]
    plain = some_rows()
    model = model_of(Prompt(tokens=9)).eval()
    assert torch.equal(label_losses(model, batch), label_losses(model, plain))


def test_recomputed_activations_give_the_same_gradients():
    model = model_of(Prompt(tokens=9)).train()
    label_losses(model, some_rows()).sum().backward()
    kept = gradients(model)
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    label_losses(model, some_rows()).sum().backward()
    for name, gradient in gradients(model).items():
        assert torch.allclose(gradient, kept[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_only_the_methods_own_parameters_move(method):
    model = model_of(method).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    label_losses(model, some_rows()).sum().backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if name.startswith("prompt_encoder.")}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_what_is_saved_is_restored_bit_for_bit(method, tmp_path):
    model = model_of(method)
    stir(model)
    method.save(model, tmp_path)
    again = model_of(method)
    method.restore(again, tmp_path)
    for (name, wanted), (_, got) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(wanted, got), name


def test_saving_while_training_draws_nothing_and_drops_nothing(tmp_path):
    from safetensors.torch import load_file

    method = PTuning(tokens=9, hidden=12, dropout=0.5)
    model = model_of(method).train()
    before = torch.get_rng_state()
    method.save(model, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.prompt_encoder["default"].training
    made = load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"]
    assert torch.equal(made, model.eval().get_prompt(batch_size=1)[0])


PLAIN_PEFT = """
import sys, torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)  # as the test: another number of threads rounds otherwise
base, adapter, out = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
assert "tunesmith" not in sys.modules
with torch.no_grad():
    save_file({"logits": model(torch.arange(3, 23)[None]).logits.contiguous()}, out)
"""


@pytest.mark.parametrize("name", ["prompt", "prefix", "prefix projected", "p_tuning", "p_tuning mlp"])
def test_a_checkpoint_loads_in_plain_peft_in_a_fresh_process(name, tmp_path, tiny_model):
    from safetensors.torch import load_file

    method = METHODS[name]
    model = method.put(load_model(find(str(tiny_model))))
    stir(model)
    method.save(model, tmp_path / "adapter")
    wanted = model.eval()(torch.arange(3, 23)[None]).logits
    words = [str(tiny_model), str(tmp_path / "adapter"), str(tmp_path / "out.safetensors")]
    subprocess.run([sys.executable, "-c", PLAIN_PEFT, *words], check=True, timeout=120, capture_output=True)
    theirs = load_file(tmp_path / "out.safetensors")["logits"]
    ours = load_model(find(str(tmp_path / "adapter"))).eval()
    assert torch.equal(theirs, ours(torch.arange(3, 23)[None]).logits)
    assert torch.allclose(theirs, wanted, atol=1e-6)
    plain = load_model(find(str(tiny_model))).eval()(torch.arange(3, 23)[None]).logits
    assert not torch.allclose(theirs[:, -20:], plain, atol=1e-3)


def test_a_text_starts_the_virtual_tokens(tiny_model):
    from tunesmith.models.load import load_tokenizer

    model = Prompt(tokens=12, text="Be brief").put(load_model(find(str(tiny_model))))
    ids = load_tokenizer(find(str(tiny_model)))("Be brief")["input_ids"]
    wanted = model.get_input_embeddings()(torch.tensor(ids + ids[:4]))
    assert torch.equal(model.prompt_encoder["default"].embedding.weight, wanted)


def test_without_text_they_start_as_words_of_the_vocabulary():
    model = model_of(Prompt(tokens=6))
    words = model.get_input_embeddings().weight
    assert all((row == words).all(dim=1).any() for row in model.prompt_encoder["default"].embedding.weight)


def test_a_prefix_starts_as_keys_and_values_of_words(tiny_model):
    torch.manual_seed(3)
    model = Prefix(tokens=6).put(load_model(find(str(tiny_model)))).eval()
    torch.manual_seed(3)
    words = torch.randint(0, model.config.vocab_size, (1, 6))
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        spoken = model.get_base_model()(torch.cat([words, ids], dim=1)).logits[:, 6:]
        assert torch.allclose(model(ids).logits, spoken, atol=1e-5)


def test_a_model_opened_for_generation_gives_the_logits_of_the_whole():
    ids = some_rows(1)["input_ids"]
    for method in METHODS.values():
        model = model_of(method).eval()
        stir(model)
        fed = opened(model)
        assert fed.tokens == virtual_tokens(model) == method.tokens
        with torch.no_grad():
            whole = model(ids).logits[:, leading_logits(model) :]
            cache, split = fed.cache(), ids.split([30, 9, 1], dim=1)
            parts = [fed.model(part, past_key_values=cache, use_cache=True).logits for part in split]
        assert torch.allclose(torch.cat(parts, dim=1), whole, atol=2e-5)
        assert fed.cache().get_seq_length() == method.tokens, "each conversation has a cache of its own"


def wish(**method):
    return load(TrainConfig, {"model": "x", "dataset": "y", "method": method})


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"kind": "prefix", "hidden": 8}, "method: hidden is the width of the projection, which is off"),
        ({"kind": "p_tuning", "encoder": "mlp", "layers": 2}, "method: layers and dropout belong to the lstm encoder"),
        ({"kind": "p_tuning", "encoder": "mlp", "dropout": 0.1}, "method: layers and dropout belong to the lstm encoder"),
        ({"kind": "p_tuning", "layers": 1, "dropout": 0.1}, "method: dropout stands between LSTM layers"),
        ({"kind": "prompt", "tokens": 0}, "method.tokens: must be at least 1. Got 0"),
        ({"kind": "prompt", "text": ""}, "method.text: .* Got ''"),
        ({"kind": "ptuning"}, "method: must be one of .*Did you mean 'p_tuning'"),
        ({"kind": "prompt", "rank": 4}, "unknown option 'method.rank'"),
    ],
)  # fmt: skip
def test_options_that_would_be_ignored_are_refused(method, said):
    with pytest.raises(UsageError, match=said) as raised:
        wish(**method)
    assert "\n" not in str(raised.value)


def test_more_text_than_tokens_and_more_tokens_than_context(tiny_model):
    base = load_model(find(str(tiny_model)))
    with pytest.raises(
        UsageError, match=r"method.text: has 18 tokens, more than the 4 virtual ones. Shorten it or set"
    ):
        Prompt(tokens=4, text="A text of 18 bytes").put(base)
    for method in (Prompt(tokens=512), Prefix(tokens=512), PTuning(tokens=512)):
        with pytest.raises(UsageError, match=r"method.tokens: would fill the model's context of 512 tokens. Got 512"):
            method.put(base)


def test_the_saved_config_is_pefts(tmp_path):
    Prefix(tokens=5, projection=True).save(model_of(Prefix(tokens=5, projection=True)), tmp_path)
    told = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert (told["peft_type"], told["num_virtual_tokens"], told["inference_mode"]) == ("PREFIX_TUNING", 5, True)
