"""Runs that read the front layers from disk have the losses of runs that compute them."""

from __future__ import annotations

import json
import os
import shutil
import time

import pytest

from tiny import write_tiny_model
from tunesmith.core.errors import CapacityError, UsageError
from tunesmith.core.run import Run
from tunesmith.training import activation_cache
from tunesmith.training.loop import loss_series

LAST = {"method__kind": "lora", "method__last_layers": 1, "method__rank": 4}


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("models") / "deep", layers=4)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TUNESMITH_CACHE", str(folder))
    return folder / "activations"


@pytest.fixture
def passes(monkeypatch):
    """Counts the passes that fill the cache."""
    made = []
    kept = activation_cache.states_before
    monkeypatch.setattr(activation_cache, "states_before", lambda *all: made.append(1) or kept(*all))
    return made


@pytest.fixture
def run(train, deep_model, tmp_path):
    def call(name, cache="auto", **more):
        wishes = {"model": str(deep_model), "memory__activation_cache": cache, **LAST, **more}
        made = train(tmp_path / name, **wishes)
        return [event["loss"] for event in loss_series(Run("train", tmp_path / name)).values()], made

    return call


def pairs_file(folder):
    rows = [{"prompt": f"Colour {n}?", "chosen": f"{n} is green", "rejected": "No" + "!" * (n % 3)} for n in range(12)]
    folder.mkdir(exist_ok=True)
    (folder / "pairs.json").write_text(json.dumps(rows))
    return {"dataset__path": [str(folder / "pairs.json")]}


def verdicts_file(folder):
    rows = [{"prompt": f"Colour {n}?", "completion": "green" + "!" * n, "label": n % 2 > 0} for n in range(30)]
    folder.mkdir(exist_ok=True)
    (folder / "verdicts.json").write_text(json.dumps(rows))
    return {"dataset__path": [str(folder / "verdicts.json")]}


@pytest.mark.parametrize("objective", ["sft", "dpo", "kto", "reward"])
def test_same_losses_as_without(run, passes, tmp_path, objective):
    data = {"dpo": pairs_file, "reward": pairs_file, "kto": verdicts_file}.get(objective, lambda _: {})(tmp_path / "in")
    more = {"objective__kind": objective, **data}
    plain, without = run("plain", "off", **more)
    assert not passes
    cached, made = run("cached", **more)
    assert passes
    assert cached == pytest.approx(plain, abs=2e-5)
    assert abs(made.held_out_loss - made.base_held_out_loss) > 1e-3
    assert made.held_out_loss == pytest.approx(without.held_out_loss, abs=2e-5)
    assert made.base_held_out_loss == pytest.approx(without.base_held_out_loss, abs=2e-5)


def test_later_runs_find_the_states_and_have_the_very_same_losses(run, passes, tmp_path):
    first, _ = run("first")
    count = len(passes)
    second, _ = run("second", dataset__path=[str(tmp_path / "first")])
    other, _ = run("other", optimizer__learning_rate=0.02, seed=1, dataset__path=[str(tmp_path / "first")])
    assert len(passes) == count
    assert second == first
    assert other != first
    events = [event for event in Run("train", tmp_path / "first").events() if event["event"] == "cached"]
    assert [(event["split"], event["layers"]) for event in events] == [("train", 3), ("held_out", 3)]
    assert all(event["seconds"] > 0 and event["size_bytes"] > 0 for event in events)


@pytest.mark.parametrize("changed", ["weights", "rows", "depth", "precision"])
def test_what_the_states_depend_on_makes_new_ones(run, passes, tmp_path, changed):
    run("first")
    passes.clear()
    more = {"depth": {"method__last_layers": 2}, "precision": {"precision": "bf16"}, "rows": {"seed": 3}}.get(
        changed, {}
    )
    if changed == "weights":
        more = {"model": str(write_tiny_model(tmp_path / "another", layers=4, seed=1))}
    run("second", **more)
    assert passes


def test_a_freeze_run_resumes_bit_for_bit(run, train, deep_model, tmp_path):
    freeze = {"method": {"kind": "freeze", "layers": 1}, "save__every_steps": 3}
    whole = train(tmp_path / "whole", model=str(deep_model), **freeze)
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", cut)
    newest = sorted((cut / "checkpoints").iterdir())[-1]
    shutil.rmtree(newest)
    again = train(cut, model=str(deep_model), resume=True, **freeze)
    assert again.held_out_loss == whole.held_out_loss
    name = "trained_weights.safetensors"
    assert (again.checkpoint / name).read_bytes() == (whole.checkpoint / name).read_bytes()


def test_a_run_that_was_killed_while_filling_goes_on_where_it_was(run, cache, passes, monkeypatch):
    monkeypatch.setattr(activation_cache, "TOKENS_AT_ONCE", 100)
    monkeypatch.setattr(activation_cache, "SAVE_SECONDS", 0)
    whole, _ = run("whole")
    count = len(passes)
    largest = max(cache.glob("*/states.json"), key=lambda path: json.loads(path.read_text())["batches"])
    facts = json.loads(largest.read_text())
    largest.write_text(json.dumps({**facts, "batches": facts["batches"] - 2}))
    passes.clear()
    assert run("again")[0] == whole
    assert len(passes) == 2 < count


def test_a_file_of_another_size_is_made_anew(run, cache, passes):
    whole, _ = run("whole")
    count = len(passes)
    for path in cache.glob("*/states.bin"):
        path.write_bytes(b"torn")
    passes.clear()
    assert run("again")[0] == whole
    assert len(passes) == count


def test_no_room_on_the_disk(run, monkeypatch, tmp_path):
    plain, _ = run("plain", "off")
    monkeypatch.setattr(activation_cache, "SPARE_BYTES", 1 << 60)
    found, _ = run("auto")
    assert found == pytest.approx(plain, abs=2e-5)
    warnings = [event["text"] for event in Run("train", tmp_path / "auto").events() if event["event"] == "warning"]
    assert any("the first 3 layers are computed in every epoch" in text for text in warnings)
    with pytest.raises(CapacityError, match="activation_cache off"):
        run("asked", "on")


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({"method__last_layers": None}, "method lora trains the first layer"),
        ({"objective__neftune_alpha": 5}, "neftune_alpha changes the embeddings"),
        ({"method__full_modules": ["embed_tokens"]}, "trains the first layer or what stands before it"),
    ],
)
def test_what_makes_states_wrong_is_refused_where_asked_for(run, passes, wish, reason):
    with pytest.raises(UsageError, match=reason):
        run("asked", "on", **wish)
    run("auto", **wish)
    assert not passes


def test_one_epoch_fills_no_cache_by_itself(run, passes):
    run("auto", optimizer__epochs=1)
    assert not passes
    run("asked", "on", optimizer__epochs=1)
    assert passes


def test_states_that_no_run_reads_are_removed(run, cache):
    run("first")
    old = time.time() - 31 * 86400
    for path in cache.glob("*/states.json"):
        os.utime(path, (old, old))
    run("second", seed=3)
    assert len(list(cache.iterdir())) == 2
