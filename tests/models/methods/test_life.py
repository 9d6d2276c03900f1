"""Every method through the verbs: it learns, resumes bit for bit, is found in a fresh process, and is exported."""

from __future__ import annotations

import io
import json

import pytest
import torch

from tests.runs import fresh_sums_of, goes_on_after, said, sums_of
from tests.tiny import write_tiny_model
from tunesmith import cli

METHODS = {
    "freeze": {"method.kind": "freeze", "method.layers": 1},
    "freeze-parts": {"method.kind": "freeze", "method.modules": ["mlp"], "method.extra": ["lm_head"]},
    "qlora": {"method.kind": "qlora", "method.dropout": 0.1},
    "qlora-head": {"method.kind": "qlora", "method.full_modules": ["lm_head"]},
    "pissa": {"method.kind": "lora", "method.init": "pissa_niter_4"},
    "lora-tied": {"method.kind": "lora", "method.full_modules": ["embed_tokens"]},
}


def options(name, tmp_path):
    more = {"model": str(write_tiny_model(tmp_path / "tied", tied=True))} if name == "lora-tied" else {}
    return METHODS[name] | more


@pytest.fixture(params=METHODS)
def wishes(request, tmp_path):
    return options(request.param, tmp_path)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_it_learns_and_a_resumed_run_goes_on_as_it_would_have(train, tmp_path, wishes, precision):
    wishes = {**wishes, "precision": precision, "save.every_steps": 2, "evaluation.every_steps": 5}
    whole = goes_on_after(7, train, tmp_path, wishes)
    assert whole.held_out_loss < whole.base_held_out_loss - 0.1


def test_a_fresh_process_says_the_same(train, tmp_path):
    runs = [str(tmp_path / name) for name in METHODS]
    for name in METHODS:
        train(tmp_path / name, **options(name, tmp_path), **{"optimizer.steps": 4})
    ours = sums_of(runs)
    assert fresh_sums_of(runs) == ours
    assert len(set(ours)) == len(ours)


def test_it_is_evaluated_asked_and_exported(train, tmp_path, wishes, rows_file, monkeypatch, capsys):
    run = tmp_path / "run"
    train(run, **wishes, **{"optimizer.epochs": 4})
    rows = ["--data", str(rows_file), "--data.rows", "8"]
    assert cli.main(["evaluate", str(run), *rows, "--metrics", "[perplexity]", "--out", str(tmp_path / "e")]) == 0
    scored = json.loads((tmp_path / "e" / "result.json").read_text())
    assert scored["tuned"]["perplexity"] < scored["base"]["perplexity"]
    monkeypatch.setattr("sys.stdin", io.StringIO("What colour has lamp 3?\n"))
    assert cli.main(["chat", str(run), "--max_tokens", "4", "--out", str(tmp_path / "c")]) == 0
    assert json.loads((tmp_path / "c" / "result.json").read_text())["turns"] == 1
    words = ["--gguf", "null", "--proof.prompts", "3", "--proof.tokens", "6", "--out", str(tmp_path / "x")]
    assert cli.main(["export", str(run), *words]) == 0, capsys.readouterr().err
    made = json.loads((tmp_path / "x" / "result.json").read_text())
    assert made["proofs"]["merged_logits"]
    assert ("unquantized_base" in made["proofs"]) == (wishes["method.kind"] == "qlora")
    assert torch.allclose(said(made["package"]), said(str(run)), atol=1e-4)
