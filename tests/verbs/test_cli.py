"""The command line: subjects, overrides, --json, --template, --dry-run."""

from __future__ import annotations

import json

import pytest

from tunesmith import cli, verbs
from tunesmith.core.config import load, parse_yaml


def test_words_are_taken_apart():
    typed = cli.parse(["rows.json", "--method.rank=3", "--max-lost", "0.1", "--json", "--out", "here"], "train")
    assert typed.subject == "rows.json"
    assert typed.out == "here"
    assert typed.flags == {"json"}
    assert typed.overrides == [("method.rank", 3), ("max_lost", 0.1)]


@pytest.mark.parametrize("typed", ["::", "::1", "who: are you?"])
def test_a_colon_makes_no_mapping(typed):
    assert cli.parse(["--host", typed], "serve").overrides == [("host", typed)]


def test_braces_make_a_mapping():
    assert cli.parse(["--method", "{kind: full}"], "train").overrides == [("method", {"kind": "full"})]


def test_json_prints_the_result_and_nothing_else(tmp_path, tiny_model, rows_file, capsys):
    words = ["prepare", str(rows_file), "--model", str(tiny_model), "--out", str(tmp_path / "run"), "--json"]
    assert cli.main(words) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert printed["rows"] == 40


def test_the_shape_users_type(tmp_path, tiny_model, rows_file):
    text = f"""
model: {tiny_model}
dataset: {rows_file}
cutoff: 1024
method: {{kind: lora, rank: 4, alpha: 8, targets: all-linear}}
objective: {{kind: sft}}
batch: {{rows: 8, accumulate: 1}}
optimizer: {{learning_rate: 2.0e-3, epochs: 3, steps: null, schedule: cosine, warmup: 0.03, weight_decay: 0.0, max_gradient_norm: 1.0}}
precision: fp32
evaluation: {{share: 0.1, every_steps: 50}}
save: {{every_steps: 100, keep: 2}}
seed: 42
"""
    (tmp_path / "train.yaml").write_text(text, encoding="utf-8")
    assert (
        cli.main(
            ["train", str(tmp_path / "train.yaml"), "--out", str(tmp_path / "run"), "--optimizer.steps", "2", "--quiet"]
        )
        == 0
    )
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert {
        "checkpoint", "steps", "train_loss", "held_out_loss", "tokens_per_second", "seconds", "peak_memory_bytes",
        "predicted_memory_bytes", "trainable_parameters",
    } <= set(result)  # fmt: skip
    assert result["steps"] == 2
    resolved = parse_yaml((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"), "config.yaml")
    assert resolved["optimizer"]["steps"] == 2
    assert load(verbs.config_class("train"), resolved)


@pytest.mark.parametrize("verb", verbs.VERBS)
def test_templates_load_once_filled_in(verb, capsys):
    assert cli.main([verb, "--template"]) == 0
    text = capsys.readouterr().out.replace(":   # required", ": something")
    assert load(verbs.config_class(verb), parse_yaml(text, "template"))


def test_dry_run_does_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "rows.json", "--model", "embedded", "--dry-run"]) == 0
    assert "train embedded by lora" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_python_interface_is_the_same(tmp_path, tiny_model, rows_file):
    import tunesmith

    made = tunesmith.prepare(model=str(tiny_model), dataset=str(rows_file), out=tmp_path / "run")
    assert made.rows == 40
    assert tunesmith.prepare.__doc__ == verbs.summary("prepare")
    config = tunesmith.PrepareConfig(model=str(tiny_model), dataset=str(rows_file))
    assert tunesmith.prepare(config, out=tmp_path / "again").data_sha256 == made.data_sha256
