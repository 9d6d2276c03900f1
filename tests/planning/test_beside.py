"""Methods that train something beside frozen weights: what the plan says of them against the models themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.models.test_head import random_model
from tests.planning.test_activations import ROWS, TOKENS, config_of, per_layer, saved_bytes
from tunesmith.core.errors import UsageError
from tunesmith.core.hardware import probe
from tunesmith.models.joined import FAMILIES, LENGTH_STEP
from tunesmith.models.methods import Bottleneck, Prefix, Prompt, PTuning
from tunesmith.models.shape import read_shape
from tunesmith.planning.activations import Batch, layer_bytes, passed_bytes
from tunesmith.planning.memory import Wish, plan_memory, predict, trained_parameters

METHODS = {
    "prompt": Prompt(tokens=7), "prefix": Prefix(tokens=7), "projected": Prefix(tokens=7, projection=True, hidden=11),
    "lstm": PTuning(tokens=7, hidden=6), "deep lstm": PTuning(tokens=7, hidden=6, layers=3),
    "mlp": PTuning(tokens=7, hidden=6, encoder="mlp"), "bottleneck": Bottleneck(), "of three": Bottleneck(size=3),
    "both": Bottleneck(after="both", last_layers=1),
}  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "gpt2"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_trained_parameters_are_counted(family, method):
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "num_key_value_heads": 4} if family == "gpt2" else {}
    model = random_model(family, **shape)
    known = read_shape(model.config.to_dict())
    trained = sum(p.numel() for p in method.put(model).parameters() if p.requires_grad)
    assert trained_parameters(known, method) == trained


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "method",
    [Bottleneck(size=4), Bottleneck(size=4, activation="relu"), Bottleneck(size=4, activation="silu", after="both")],
    ids=["gelu", "relu", "silu, both"],
)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_bottlenecks_keep_their_input_and_their_middle(kind, method, bf16):
    measured = per_layer(kind, method, bf16=bf16, padded=True, joined=kind in FAMILIES)
    shape = read_shape(config_of(kind, 6).to_dict())
    wanted = layer_bytes(shape, method.footprint(shape), bf16=bf16, batch=Batch(ROWS, TOKENS, padded=True))
    assert wanted == pytest.approx(measured, rel=0.005)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gpt2"])
@pytest.mark.parametrize("tokens", [12, 4])
def test_virtual_embeddings_go_through_every_layer(kind, tokens, bf16):
    method, joined = Prompt(tokens=tokens), kind in FAMILIES
    measured = per_layer(kind, method, bf16=bf16, padded=True, joined=joined)
    shape = read_shape(config_of(kind, 2).to_dict())
    shared, lengths = tokens if joined and tokens >= 8 else 0, (TOKENS + tokens - 5, TOKENS + tokens) if joined else ()
    step = LENGTH_STEP if joined else 1
    batch = Batch(ROWS, TOKENS + tokens, padded=True, shared=shared, step=step, lengths=lengths)
    wanted = passed_bytes(shape, method.footprint(shape), bf16=bf16, batch=batch)
    assert wanted == pytest.approx(measured, rel=0.005)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("padded", [False, True], ids=["even", "padded"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gpt2"])
def test_a_prefix_is_seen_by_every_row(kind, padded, bf16):
    method = Prefix(tokens=9)
    measured = per_layer(kind, method, bf16=bf16, padded=padded, joined=False)
    shape = read_shape(config_of(kind, 2).to_dict())
    batch = Batch(ROWS, TOKENS, padded=padded)
    wanted = passed_bytes(shape, method.footprint(shape), bf16=bf16, batch=batch)
    assert wanted == pytest.approx(measured, rel=0.01)


def wish(method, **more) -> Wish:
    return Wish("m", method, "fp32", rows=4, tokens=64, **more)


def test_the_plan_counts_virtual_tokens_where_they_are_held():
    shape = read_shape(config_of("llama", 4).to_dict())
    few, many = (predict(shape, wish(Prompt(tokens=tokens)), probe()) for tokens in (8, 40))
    assert many.activations_bytes > few.activations_bytes
    assert many.optimizer_bytes - few.optimizer_bytes == 8 * 32 * 96
    short, long = (predict(shape, wish(Prefix(tokens=tokens)), probe()) for tokens in (8, 40))
    width = 2 * 16
    assert long.activations_bytes - short.activations_bytes >= 4 * 32 * 4 * 2 * width * 4


def test_a_prefix_is_never_recomputed():
    shape = read_shape(config_of("llama", 4).to_dict())
    machine = probe()
    with pytest.raises(UsageError, match="memory.checkpointing: method prefix keeps its keys in a cache.* Got on"):
        plan_memory(shape, wish(Prefix(), checkpointing=True), machine)
    small = plan_memory(shape, wish(Prefix(), limit_bytes=1), machine)
    assert not small.checkpointing
    assert not small.fits
    plenty = predict(shape, wish(Prefix()), machine).total_bytes - 1
    told = plan_memory(shape, wish(Prefix(), limit_bytes=plenty), machine).advice
    assert told.startswith("--batch.rows")
    assert plan_memory(shape, wish(Prompt(), limit_bytes=1), machine).checkpointing


def test_too_large_a_bottleneck_is_refused_by_the_plan():
    shape = read_shape(config_of("llama", 2).to_dict())
    with pytest.raises(UsageError, match="method.size"):
        predict(shape, replace(wish(Bottleneck(size=4000)), rows=1), probe())


def test_recomputing_keeps_boundaries_only():
    assert saved_bytes("llama", 4, Prompt(tokens=9), bf16=False, padded=True, checkpointing=True) < saved_bytes(
        "llama", 4, Prompt(tokens=9), bf16=False, padded=True
    )
