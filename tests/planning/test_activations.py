"""The activation formula against the tensors that torch really saves for the backward pass."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tunesmith.models.head import label_losses
from tunesmith.models.joined import FAMILIES
from tunesmith.models.lean import make_lean
from tunesmith.models.load import Found
from tunesmith.models.methods import Freeze, Full, Lora, Qlora
from tunesmith.models.shape import read_shape
from tunesmith.planning.activations import Batch, boundary_bytes, layer_bytes, passed_bytes

ROWS, TOKENS = 2, 64
TINY = {
    "vocab_size": 128, "hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 6, "num_key_value_heads": 2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT2 = {"vocab_size": 128, "n_embd": 96, "n_head": 6, "n_positions": 512, "bos_token_id": 1, "eos_token_id": 2}


def config_of(kind: str, layers: int):
    from transformers import AutoConfig

    if kind == "gpt2":
        return AutoConfig.for_model(kind, n_layer=layers, **GPT2)
    sized = {} if kind == "phi3" else {"head_dim": 16}
    return AutoConfig.for_model(kind, num_hidden_layers=layers, **TINY, **sized)


def saved_bytes(
    kind: str,
    layers: int,
    method,
    *,
    bf16: bool,
    padded: bool,
    checkpointing: bool = False,
    shared: int = 0,
    joined: bool = True,
    tokens: int = TOKENS,
    lean: bool = True,
) -> int:
    """Bytes of all storages that autograd saves in one forward pass, weights not counted."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_config(config_of(kind, layers))
    if method.kind == "qlora":
        with TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            model = method.load(Found("it", Path(folder)), "bf16" if bf16 else "fp32")
    elif bf16 and method.kind != "full":
        model = model.bfloat16()
    model = method.put(model).train()
    if lean:
        make_lean(model)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen, kept = {}, []

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)  # so that no address is used twice
        return tensor

    ids = torch.randint(5, 100, (ROWS, tokens))
    mask = torch.ones_like(ids)
    mask[0, tokens - 5 :] = 0 if padded else 1
    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        if joined:  # as in training: the last tokens are trained, the loss is part of neither layer
            ids[:, : shared + 1] = ids[0, : shared + 1].clone()
            ids[:, shared + 1] = torch.arange(ROWS)
            labels = torch.where((torch.arange(tokens) > tokens - 8) & (mask > 0), ids, -100)
            label_losses(model, {"input_ids": ids, "attention_mask": mask, "labels": labels})
        else:
            model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1)
    return sum(seen.values())


def per_layer(kind: str, method, **how) -> float:
    """The middle of the model: what four layers more make more."""
    return (saved_bytes(kind, 6, method, **how) - saved_bytes(kind, 2, method, **how)) / 4


def formula(kind: str, method, *, bf16: bool, padded: bool, lean: bool = True, **_) -> int:
    shape = read_shape(config_of(kind, 2).to_dict())
    return layer_bytes(shape, method.footprint(shape), bf16=bf16, batch=Batch(ROWS, TOKENS, padded, lean=lean))


@pytest.mark.peer
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2"])
@pytest.mark.parametrize("method", [Full(), Lora(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("padded", [False, True], ids=["even", "padded"])
@pytest.mark.parametrize("lean", [True, False], ids=["lean", "spread"])
def test_the_formula_is_what_torch_saves(kind, method, bf16, padded, lean):
    how = {"bf16": bf16, "padded": padded, "joined": kind in FAMILIES, "lean": lean}
    assert formula(kind, method, **how) == pytest.approx(per_layer(kind, method, **how), rel=0.005)


@pytest.mark.peer
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "method",
    [Lora(rank=4, dropout=0.1), Lora(rank=4, dora=True), Lora(rank=4, targets=("q_proj", "v_proj")), Lora(targets=("o_proj",))],
    ids=["dropout", "dora", "two names", "one name"],
)  # fmt: skip
def test_adapters_of_every_kind(method, bf16):
    how = {"bf16": bf16, "padded": False}
    assert formula("llama", method, **how) == pytest.approx(per_layer("llama", method, **how), rel=0.01)


@pytest.mark.peer
@pytest.mark.parametrize("shared", [0, 20])
@pytest.mark.parametrize("method", [Full(), Lora(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_of_long_rows_no_scores_are_kept(method, bf16, shared):
    measured = per_layer("llama", method, bf16=bf16, padded=True, tokens=256, shared=shared)
    shape = read_shape(config_of("llama", 2).to_dict())
    batch = Batch(ROWS, 256, padded=True, shared=shared, lengths=(251, 256))
    wanted = layer_bytes(shape, method.footprint(shape), bf16=bf16, batch=batch)
    assert wanted == pytest.approx(measured, rel=0.005)


@pytest.mark.peer
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize(
    "wish", [{}, {"modules": ("mlp",)}, {"modules": ("self_attn",)}, {"extra": ("embed_tokens",)}], ids=str
)
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_a_frozen_layer_made_trained(kind, wish, bf16):
    """What the third layer from the end saves more when it is trained too."""
    few, many = (Freeze(layers=number, **wish) for number in (2, 3))
    how = {"bf16": bf16, "padded": False, "joined": kind in FAMILIES}
    measured = saved_bytes(kind, 4, many, **how) - saved_bytes(kind, 4, few, **how)
    shape = read_shape(config_of(kind, 4).to_dict())
    footprint, batch = few.footprint(shape), Batch(ROWS, TOKENS, padded=False)
    wanted = layer_bytes(shape, footprint, bf16=bf16, batch=batch)
    wanted -= passed_bytes(shape, footprint, bf16=bf16, batch=batch) if footprint.passed else 0
    assert wanted == pytest.approx(measured, rel=0.005)


@pytest.mark.peer
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "method", [Qlora(rank=4), Qlora(rank=4, dropout=0.1), Qlora(rank=4, dora=True)], ids=["plain", "dropout", "dora"]
)
def test_a_base_in_four_bits_saves_as_lora_does(method, bf16):
    how = {"bf16": bf16, "padded": False}
    assert formula("llama", method, **how) == pytest.approx(per_layer("llama", method, **how), rel=0.02)


SHARED = 20


@pytest.mark.peer
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("method", [Full(), Lora(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_a_shared_beginning_is_saved_once(kind, method, bf16):
    how = {"bf16": bf16, "padded": True}
    measured = per_layer(kind, method, **how, shared=SHARED)
    shape = read_shape(config_of(kind, 2).to_dict())
    batch = Batch(ROWS, TOKENS, padded=True, shared=SHARED, lengths=(TOKENS - 5, TOKENS))
    wanted = layer_bytes(shape, method.footprint(shape), bf16=bf16, batch=batch)
    assert wanted == pytest.approx(measured, rel=0.005)
    assert measured < per_layer(kind, method, **how)


@pytest.mark.peer
@pytest.mark.parametrize("method", [Full(), Lora(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_checkpointing_keeps_the_hidden_states(method, bf16):
    measured = per_layer("llama", method, bf16=bf16, padded=False, checkpointing=True)
    shape = read_shape(config_of("llama", 2).to_dict())
    wanted = boundary_bytes(shape, method.footprint(shape), bf16=bf16, batch=Batch(ROWS, TOKENS, padded=False))
    assert wanted == pytest.approx(measured, rel=0.02)


def test_by_hand():
    """One fp32 llama layer of full tuning, in numbers a token: 4 h + 3 i + 2 q + 2 k + heads x tokens + 2 norms."""
    shape = read_shape({**TINY, "model_type": "llama", "num_hidden_layers": 1})
    numbers = 4 * 96 + 3 * 256 + 2 * 96 + 2 * 32 + 6 * 10 + 2
    assert (
        layer_bytes(shape, Full().footprint(shape), bf16=False, batch=Batch(3, 10, padded=False, step=1))
        == 30 * 4 * numbers
    )
