"""Freeze tuning: what is trained, what is left, what is saved."""

from __future__ import annotations

import pytest
import torch

from tests.models.methods.conftest import logits, steps, stored
from tests.models.test_head import random_model, same, some_rows
from tunesmith.core.errors import ModelError, UsageError
from tunesmith.models.head import label_losses
from tunesmith.models.load import Found, find, load_model
from tunesmith.models.methods import Freeze
from tunesmith.models.overlay import OVERLAY
from tunesmith.models.shape import KNOWN, read_shape

WISHES = [
    Freeze(layers=1), Freeze(layers=2, modules=("mlp",)), Freeze(layers=1, modules=("self_attn", "input_layernorm")),
    Freeze(layers=0, extra=("lm_head",)), Freeze(layers=1, extra=("embed_tokens", "norm")),
]  # fmt: skip


def trained(model) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def said(method) -> str:
    return f"{method.layers} {method.modules} {method.extra}"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("method", WISHES, ids=said)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi3"])
def test_the_plan_counts_what_is_trained(family, method, tied):
    model = random_model(family, num_hidden_layers=3, tie_word_embeddings=tied)
    shape = read_shape(model.config.to_dict())
    assert method.footprint(shape).trained == sum(p.numel() for p in trained(method.put(model)).values())


@pytest.mark.parametrize("family", KNOWN)
def test_the_last_layers_of_every_family(family):
    shape = {"n_embd": 32, "n_layer": 3, "n_head": 4} if family == "gpt2" else {"num_hidden_layers": 3}
    model = random_model(family, **shape)
    names = trained(Freeze(layers=1).put(model))
    assert all(f".{model.config.num_hidden_layers - 1}." in name for name in names)
    assert Freeze(layers=1).footprint(read_shape(model.config.to_dict())).trained == sum(
        p.numel() for p in names.values()
    )


def test_names_inside_and_outside_the_layers():
    model = Freeze(layers=1, modules=("mlp", "q_proj"), extra=("norm",)).put(random_model("llama"))
    prefix = "model.layers.1."
    assert set(trained(model)) == {
        f"{prefix}mlp.up_proj.weight", f"{prefix}mlp.gate_proj.weight", f"{prefix}mlp.down_proj.weight",
        f"{prefix}self_attn.q_proj.weight", "model.norm.weight",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_a_tied_matrix_is_trained_from_both_sides(name):
    model = Freeze(layers=0, extra=(name,)).put(random_model("llama", tie_word_embeddings=True))
    assert list(trained(model)) == ["model.embed_tokens.weight"]
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert Freeze(layers=0, extra=(name,)).footprint(read_shape(model.config.to_dict())).head
    same(model.train(), some_rows())


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"layers": 3}, "method.layers: the model has 2 layers. Got 3"),
        ({"modules": ("mpl",)}, "method.modules: names no such part of this model. Got mpl. Known: .*mlp.*self_attn"),
        ({"extra": ("head",)}, "method.extra: names no such part of this model. Got head. Known: .*embed_tokens"),
        ({"layers": 0}, "method: trains nothing"),
        ({"modules": ()}, "method: trains nothing"),
    ],
)
def test_wrong_names_end_in_one_line(wish, message):
    model = random_model("llama")
    for refuse in (Freeze(**wish).put, lambda it: Freeze(**wish).footprint(read_shape(it.config.to_dict()))):
        with pytest.raises(UsageError, match=message):
            refuse(model)


def test_layers_that_train_nothing_make_no_graph():
    model, seen = Freeze(layers=1).put(random_model("llama", num_hidden_layers=3)).train(), []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    label_losses(model, some_rows()).sum().backward()
    assert seen == [False, False, True]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", WISHES, ids=said)
def test_only_what_is_trained_is_saved_and_the_rest_is_the_base(saved, tmp_path, method, precision):
    found = saved(tie_word_embeddings=method.extra == ("lm_head",))
    model = method.put(method.load(found, precision))
    before = {name: tensor.clone() for name, tensor in stored(found).items()}
    for name, p in trained(model).items():
        assert p.dtype == torch.float32
        assert torch.equal(p, before[name]), "masters start from the stored numbers"
    first, *_, last = steps(model, 4, bf16=precision == "bf16")
    assert last < first
    (tmp_path / "made").mkdir()
    method.save(model, tmp_path / "made")
    again = load_model(Found("it", found.base, adapter=tmp_path / "made"))
    for name, tensor in again.state_dict().items():
        wanted = trained(model).get(
            "model.embed_tokens.weight" if name == "lm_head.weight" and name not in before else name
        )
        assert torch.equal(tensor, before[name] if wanted is None else wanted), name
    size = sum(path.stat().st_size for path in (tmp_path / "made").glob("*.safetensors"))
    assert size < 4 * sum(p.numel() for p in trained(model).values()) + 4000
    if precision == "fp32":
        assert torch.equal(logits(again), logits(model))


def test_weights_for_another_base_are_refused(saved, tmp_path):
    method = Freeze(layers=1)
    method.save(method.put(method.load(saved(), "fp32")), tmp_path)
    with pytest.raises(ModelError, match="does not fit this base model: model.layers.2"):
        load_model(Found("it", saved(num_hidden_layers=2).base, adapter=tmp_path))


def test_a_checkpoint_names_its_base(train, tmp_path, tiny_model):
    made = train(tmp_path / "run", method__kind="freeze", method__layers=1, optimizer__steps=4)
    assert (made.checkpoint / OVERLAY).is_file()
    assert not (made.checkpoint / "config.json").exists()
    found = find(str(tmp_path / "run"))
    assert (found.base, found.adapter) == (tiny_model, made.checkpoint)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_reward_model_keeps_its_head(tiny_model, tmp_path, precision):
    from dataclasses import replace

    from tunesmith.core import files
    from tunesmith.models.load import find, gives_scores
    from tunesmith.models.scoring import head_of, load_reward_model

    base = replace(find(str(tiny_model)), is_reward=True)
    method = Freeze(layers=1)
    model = method.put(method.load(base, precision))
    assert head_of(model).weight.requires_grad
    method.save(model, tmp_path)
    files.write_json(tmp_path / "manifest.json", {"base": {"model": str(tiny_model)}, "files": {}})
    found = find(str(tmp_path))
    assert gives_scores(found)
    assert torch.equal(head_of(load_reward_model(found)).weight, head_of(model).weight)
