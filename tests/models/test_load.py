"""Models by what a person types: what is found, what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from tunesmith.core.errors import ModelError
from tunesmith.models.load import as_base, find, load_model, load_tokenizer, safe_config
from tunesmith.models.stored import weights_fingerprint


@pytest.fixture
def copy(tiny_model, tmp_path):
    """A model folder that may be damaged."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def test_a_folder_of_weights(tiny_model):
    found = find(str(tiny_model))
    assert found.base == tiny_model
    assert found.adapter is None
    assert load_model(found, "bf16").dtype == torch.bfloat16
    assert load_tokenizer(found).eos_token == "<|im_end|>"


def test_pickled_weights_are_refused(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no safetensors weights. Other formats can run code"):
        find(str(copy))


@pytest.mark.parametrize("key", ["auto_map", "_attn_implementation_internal", "_attn_implementation"])
def test_configs_that_name_code_are_refused(copy, key):
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps({**config, key: "someone/kernels"}), encoding="utf-8")
    with pytest.raises(ModelError, match=f"names code to run \\({key}\\)"):
        safe_config(copy)


def test_a_model_without_chat_template_is_refused(copy):
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="no chat template"):
        load_tokenizer(find(str(copy)))


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(ModelError, match="is not a model, checkpoint, run or package"):
        find(str(tmp_path))


def test_a_run_that_made_no_model_is_refused(tmp_path):
    (tmp_path / "result.json").write_text('{"rows": 3}', encoding="utf-8")
    with pytest.raises(ModelError, match="is a run that made no model"):
        find(str(tmp_path))


def test_fingerprints_tell_weights_apart(tiny_model, tmp_path):
    from tiny import write_tiny_model

    same = shutil.copytree(tiny_model, tmp_path / "same")
    other = write_tiny_model(tmp_path / "other", seed=1)
    assert weights_fingerprint(same) == weights_fingerprint(tiny_model)
    assert weights_fingerprint(other) != weights_fingerprint(tiny_model)


def test_a_fingerprint_sees_every_layer(tmp_path):
    """Freeze tuning changes the last layers alone, which lie in the middle of the file: layer 11 stands before layer 2."""
    from tiny import write_tiny_model

    base = write_tiny_model(tmp_path / "base", layers=12, width=256)
    model = load_model(find(str(base)))
    with torch.no_grad():
        for parameter in model.model.layers[11].parameters():
            parameter.add_(0.1)
    model.save_pretrained(tmp_path / "frozen")
    assert weights_fingerprint(tmp_path / "frozen") != weights_fingerprint(base)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 3}, r"lacks weights that its config asks for, first: model\.layers\.2\."),
        (
            {"intermediate_size": 128},
            r"has weights of another shape than its config asks for, first: model\.layers\.0\.mlp",
        ),
    ],
)
def test_weights_that_are_not_those_of_the_config_are_refused(copy, changes, said):
    """transformers would train random ones in their place."""
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
    with pytest.raises(ModelError, match=said):
        load_model(find(str(copy)))


@pytest.mark.parametrize("left", [0, 5, 900, 100_000])
def test_weights_that_are_cut_off_are_refused(copy, left):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    for use in (lambda: load_model(find(str(copy))), lambda: weights_fingerprint(copy)):
        with pytest.raises(ModelError, match=r"model\.safetensors: is cut off or no safetensors file"):
            use()


def test_a_tokenizer_that_is_cut_off_is_refused(copy):
    path = copy / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8")[:100], encoding="utf-8")
    with pytest.raises(ModelError, match="has a tokenizer that cannot be read: Expecting value"):
        load_tokenizer(find(str(copy)))


def test_nothing_is_trained_on_top_of_a_reward_model(tiny_model, tmp_path):
    note = {"base_model_name_or_path": str(tiny_model), "task_type": "SEQ_CLS"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(note), encoding="utf-8")
    with pytest.raises(ModelError, match="is a reward model, so nothing is trained on top of it. Train on its base"):
        as_base(find(str(tmp_path)))


def test_an_adapter_whose_base_is_gone_names_both(tmp_path):
    gone = tmp_path / "gone"
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(gone)}), encoding="utf-8")
    with pytest.raises(ModelError, match=f"{tmp_path}: was trained on '{gone}', which cannot be had: no such model"):
        find(str(tmp_path))


def test_the_embedded_model_answers():
    found = find("embedded")
    tokenizer, model = load_tokenizer(found), load_model(found)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    said = model.generate(**ids, max_new_tokens=10, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(said, skip_special_tokens=True) == "The capital of France is Paris."
