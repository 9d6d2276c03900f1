"""Parameter counts from config.json against the models themselves."""

from __future__ import annotations

import json

import pytest

from tunesmith.core.errors import ModelError, UsageError
from tunesmith.models.shape import FAMILIES, KNOWN, adapter_parameters, read_shape, targeted

SMALL = {
    "vocab_size": 300, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SMALL_GPT2 = {"vocab_size": 300, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64}

# sizes as published on the hub, with the parameter count of the published weights
PUBLISHED = [
    (135_000_000 - 484_992, {
        "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
    }),  # SmolLM2-135M
    (6_738_415_616, {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
    }),  # Llama-2-7B
    (7_241_732_096, {
        "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    }),  # Mistral-7B-v0.1
    (494_032_768, {
        "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True,
    }),  # Qwen2.5-0.5B
    (596_049_920, {
        "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "head_dim": 128,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "tie_word_embeddings": True,
    }),  # Qwen3-0.6B
    (2_614_341_888, {
        "model_type": "gemma2", "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "head_dim": 256,
        "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
    }),  # gemma-2-2b
    (999_885_952, {
        "model_type": "gemma3_text", "vocab_size": 262144, "hidden_size": 1152, "intermediate_size": 6912,
        "head_dim": 256, "num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1,
    }),  # gemma-3-1b
    (3_821_079_552, {
        "model_type": "phi3", "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
    }),  # Phi-3-mini
    (124_439_808, {
        "model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024,
    }),  # gpt2
]  # fmt: skip


def small(kind: str, **more):
    return {**(SMALL_GPT2 if kind == "gpt2" else SMALL), "model_type": kind, **more}


def on_meta(config: dict):
    """The model that transformers makes of a config, without memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    known = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **known))


@pytest.mark.parametrize(("count", "config"), PUBLISHED, ids=lambda v: v["model_type"] if isinstance(v, dict) else "")
def test_published_models(count, config):
    assert read_shape(config).parameters == count


@pytest.mark.peer
@pytest.mark.parametrize("kind", KNOWN)
@pytest.mark.parametrize(
    "more", [{}, {"tie_word_embeddings": True}, {"tie_word_embeddings": False}, {"attention_bias": True, "mlp_bias": True}],
    ids=["plain", "tied", "untied", "biases"],
)  # fmt: skip
def test_as_transformers_counts(kind, more):
    """Also from the config as transformers writes it, where every default stands."""
    config = small(kind, **more)
    model = on_meta(config)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert read_shape(config).parameters == count
    assert read_shape(json.loads(model.config.to_json_string(use_diff=False))).parameters == count


@pytest.mark.peer
@pytest.mark.parametrize("kind", KNOWN)
@pytest.mark.parametrize("dora", [False, True])
def test_adapters_as_peft_counts(kind, dora):
    import torch
    from peft import LoraConfig, get_peft_model

    config = small(kind)
    wish = LoraConfig(r=5, target_modules="all-linear", use_dora=dora, task_type="CAUSAL_LM")
    with torch.device("meta"):
        trained, _ = get_peft_model(on_meta(config), wish).get_nb_trainable_parameters()
    assert adapter_parameters(read_shape(config), 5, dora=dora) == trained


@pytest.mark.peer
@pytest.mark.parametrize(
    "targets", [["q_proj", "v_proj"], ["self_attn.o_proj"], ["1.mlp.up_proj"], ["lm_head", "down_proj"]]
)
def test_named_targets_as_peft_counts(targets):
    from peft import LoraConfig, get_peft_model

    config = small("llama")
    wish = LoraConfig(r=3, target_modules=targets, task_type="CAUSAL_LM")
    trained, _ = get_peft_model(on_meta(config), wish).get_nb_trainable_parameters()
    assert adapter_parameters(read_shape(config), 3, targets) == trained


def test_the_embedded_model_by_hand():
    shape = read_shape(PUBLISHED[0][1])
    assert shape.attention_parameters == 576 * 576 * 2 + 576 * 192 * 2
    assert shape.mlp_parameters == 3 * 576 * 1536
    assert shape.norm_parameters == 2 * 576
    assert shape.embedding_parameters == 49152 * 576
    assert shape.head_parameters == 0
    assert len(targeted(shape, "all-linear")) == 7 * 30
    assert adapter_parameters(shape, 16) == 4_884_480


def test_a_folder_a_file_and_what_is_not_there(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(small("llama")))
    assert read_shape(tmp_path) == read_shape(tmp_path / "config.json") == read_shape(small("llama"))
    with pytest.raises(ModelError, match="has no config.json"):
        read_shape(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "lacks model_type"),
        ({"model_type": "lama"}, "Did you mean 'llama'"),
        ({"model_type": "bert"}, "no family whose parts are known"),
        (small("llama", hidden_size=None), "lacks hidden_size"),
        (small("llama", vocab_size="many"), "vocab_size must be a whole number"),
        (small("mixtral", num_local_experts=8), "mixture of experts"),
        ({"model_type": "gemma3", "text_config": {}}, "text-only"),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(config, said):
    with pytest.raises(ModelError, match=said) as raised:
        read_shape(config)
    assert "\n" not in str(raised.value)


def test_an_unknown_target_is_named():
    with pytest.raises(UsageError, match="Got qproj. Known: down_proj"):
        targeted(read_shape(small("llama")), ["q_proj", "qproj"])


def test_every_family_is_tried_above():
    assert set(FAMILIES) | {"gpt2"} == set(KNOWN)
