"""Precision and recomputation of real runs, by what they leave behind."""

from __future__ import annotations

import json

import pytest

import tunesmith


@pytest.fixture
def train(tmp_path, tiny_model, rows_file):
    number = iter(range(100))

    def run(**options):
        out = tmp_path / f"run-{next(number)}"
        wish = {"precision": "fp32", "batch": {"rows": 4}, "optimizer": {"learning_rate": 0.01, "steps": 20}}
        made = tunesmith.train(model=str(tiny_model), dataset=str(rows_file), out=out, **{**wish, **options})
        lines = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
        return made, [line["loss"] for line in lines if line["event"] == "step"]

    return run


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_recomputing_activations_changes_memory_and_not_the_loss(train, kind):
    plain, without = train(method={"kind": kind}, memory={"checkpointing": "off"})
    less, again = train(method={"kind": kind}, memory={"checkpointing": "on"})
    assert again == pytest.approx(without, abs=1e-5)
    assert without[-1] < without[0] - 0.3
    assert less.predicted_memory_bytes < plain.predicted_memory_bytes


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_bf16_learns_with_fp32_weights_of_what_is_trained(train, kind):
    from safetensors.torch import load_file

    exact, series = train(method={"kind": kind})
    made, rounded = train(method={"kind": kind}, precision="bf16")
    assert rounded[0] == pytest.approx(series[0], rel=0.01)
    assert rounded[-1] == pytest.approx(series[-1], rel=0.25)
    assert rounded != series
    name = "adapter_model.safetensors" if kind == "lora" else "model.safetensors"
    assert {str(t.dtype) for t in load_file(made.checkpoint / name).values()} == {"torch.float32"}
    assert made.held_out_loss == pytest.approx(exact.held_out_loss, rel=0.25)
