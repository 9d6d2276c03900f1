"""Models by what a person types: what is found, what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from tunesmith.core.errors import ModelError
from tunesmith.models.load import find, load_model, load_tokenizer, safe_config, weights_fingerprint


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


def test_the_embedded_model_answers():
    found = find("embedded")
    tokenizer, model = load_tokenizer(found), load_model(found)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    said = model.generate(**ids, max_new_tokens=10, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(said, skip_special_tokens=True) == "The capital of France is Paris."
