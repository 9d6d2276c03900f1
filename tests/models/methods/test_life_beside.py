"""Adapters that stand beside the weights, through the verbs: learn, resume, evaluate, chat, serve, export, answer."""

from __future__ import annotations

import io
import json

import pytest
import torch

from tests.runs import fresh_sums_of, goes_on_after, said, sums_of
from tests.training.conftest import _one_thread, train  # noqa: F401 - fixtures
from tunesmith import cli
from tunesmith.core import files
from tunesmith.verbs.serve import answer_over_http

METHODS = {
    "prompt": {"method.kind": "prompt", "method.tokens": 8, "optimizer.learning_rate": 0.3},
    "prefix": {"method.kind": "prefix", "method.tokens": 8, "optimizer.learning_rate": 0.3},
    "projected": {"method.kind": "prefix", "method.tokens": 8, "method.projection": True, "method.hidden": 16},
    "p_tuning": {"method.kind": "p_tuning", "method.tokens": 8, "method.hidden": 16, "method.dropout": 0.1},
    "bottleneck": {"method.kind": "bottleneck"},
}


@pytest.fixture(params=METHODS)
def wishes(request):
    return METHODS[request.param]


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_it_learns_and_a_resumed_run_goes_on_as_it_would_have(train, tmp_path, wishes, precision):  # noqa: F811
    wishes = {**wishes, "precision": precision, "save.every_steps": 2, "evaluation.every_steps": 5}
    whole = goes_on_after(7, train, tmp_path, wishes)
    assert whole.held_out_loss < whole.base_held_out_loss - 0.005  # a random model has little to be steered by


def test_checkpoints_hold_no_base(train, tmp_path, tiny_model, wishes):  # noqa: F811
    made = train(tmp_path / "run", **wishes, **{"optimizer.steps": 1})
    assert made.trainable_parameters < made.parameters
    adapter = (made.checkpoint / "adapter_model.safetensors").stat().st_size
    assert adapter < (tiny_model / "model.safetensors").stat().st_size / 4


def test_it_is_evaluated_asked_exported_and_answers_from_the_package(
    train, tmp_path, wishes, rows_file, monkeypatch, capsys  # noqa: F811
):  # fmt: skip
    run = tmp_path / "run"
    train(run, **wishes)
    rows = ["--data", str(rows_file), "--data.rows", "8", "--metrics", "[perplexity]"]
    assert cli.main(["evaluate", str(run), *rows, "--out", str(tmp_path / "e")]) == 0
    scored = json.loads((tmp_path / "e" / "result.json").read_text())
    assert scored["tuned"]["perplexity"] < scored["base"]["perplexity"]

    words = ["--proof.prompts", "3", "--proof.tokens", "6", "--name", "mine"]
    capsys.readouterr()
    assert cli.main(["export", str(run), *words, "--out", str(tmp_path / "refused")]) == 2
    told = capsys.readouterr().err
    kind = wishes["method.kind"]
    assert told.count("\n") == 1
    assert f"gguf: method {kind} changes no weights, so llama.cpp cannot carry it. Got q8_0. Give --gguf null" in told
    assert cli.main(["export", str(run), *words, "--gguf", "null", "--out", str(tmp_path / "x")]) == 0
    made = json.loads((tmp_path / "x" / "result.json").read_text())
    assert made["proofs"] == dict.fromkeys(("saved_logits", "saved_answers", "template_tokens", "end_tokens"), True)
    assert made["details"]["saved_logits"]["largest_difference"] == 0
    assert made["not_made"]["gguf_answers"] == f"llama.cpp cannot carry method {kind}"
    package = tmp_path / "x" / "mine"
    assert set(made["files"]) == {"model/model.safetensors", "adapter/adapter_model.safetensors"}
    assert files.verify(package) is None

    moved = package.rename(tmp_path / "moved")
    run.rename(tmp_path / "gone")  # the package needs nothing of its run
    assert torch.equal(said(str(moved)), said(str(tmp_path / "gone")))
    monkeypatch.setattr("sys.stdin", io.StringIO("What colour has lamp 3?\n"))
    assert cli.main(["chat", str(moved), "--max_tokens", "4", "--out", str(tmp_path / "c")]) == 0
    assert json.loads((tmp_path / "c" / "result.json").read_text())["turns"] == 1


def test_a_fresh_process_says_the_same(train, tmp_path):  # noqa: F811
    runs = [str(tmp_path / name) for name in METHODS]
    for name, wishes in METHODS.items():
        train(tmp_path / name, **wishes, **{"optimizer.steps": 4})
    ours = sums_of(runs)
    assert fresh_sums_of(runs) == ours
    assert len(set(ours)) == len(ours)


def test_a_package_is_evaluated_against_its_own_base_and_served(train, tmp_path, rows_file):  # noqa: F811
    train(tmp_path / "run", **METHODS["prompt"])
    words = ["--proof.prompts", "1", "--proof.tokens", "4", "--name", "mine", "--gguf", "null", "--quiet"]
    assert cli.main(["export", str(tmp_path / "run"), *words, "--out", str(tmp_path / "x")]) == 0
    package, scored = tmp_path / "x" / "mine", []
    for name, model in (("e", tmp_path / "run"), ("f", package)):
        rows = ["--data", str(rows_file), "--data.rows", "8", "--metrics", "[perplexity]"]
        assert cli.main(["evaluate", str(model), *rows, "--out", str(tmp_path / name)]) == 0
        scored.append(json.loads((tmp_path / name / "result.json").read_text()))
    assert [it["tuned"] for it in scored] == [scored[0]["tuned"]] * 2
    assert [it["base"] for it in scored] == [scored[0]["base"]] * 2
    assert isinstance(answer_over_http(package, "What colour has lamp 3?"), str)
    card = (package / "README.md").read_text(encoding="utf-8")
    assert 'PeftModel.from_pretrained(base, "./adapter")' in card
    assert "vllm" not in card


def test_a_prefix_is_not_recomputed(tiny_model, rows_file, tmp_path, capsys):
    words = ["train", str(rows_file), "--model", str(tiny_model), "--method.kind", "prefix"]
    assert cli.main([*words, "--memory.checkpointing", "on", "--out", str(tmp_path / "run")]) == 2
    assert "memory.checkpointing: method prefix keeps its keys in a cache" in capsys.readouterr().err


def test_the_tour_refuses_a_method_it_could_not_end(tmp_path, capsys):
    assert cli.main(["quickstart", "--method.kind", "prompt", "--out", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert "method.kind: the tour ends with a GGUF file, and method prompt changes no weights. Got prompt" in told
