"""The plan verb: a bare config.json, a prepared dataset, and words that are wrong."""

from __future__ import annotations

import json

import pytest

from tests.tiny import write_tiny_model
from tunesmith import cli
from tunesmith.core.config import load
from tunesmith.core.hardware import probe
from tunesmith.data.batch import BatchConfig
from tunesmith.data.dataset import Rows
from tunesmith.models.head import CHUNK
from tunesmith.models.load import find
from tunesmith.models.shape import read_shape
from tunesmith.planning.memory import heaviest
from tunesmith.training.distributed import ALONE
from tunesmith.training.passes import largest_passes, wishes_of
from tunesmith.verbs.plan import PlanConfig, preview

QWEN = {
    "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [{"instruction": f"Say {'ha ' * n}", "output": "ha " * (n + 1)} for n in range(1, 21)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def plan(out, *words: object) -> dict:
    assert cli.main(["plan", *map(str, words), "--out", str(out)]) == 0
    return json.loads((out / "result.json").read_text())


def test_a_config_without_weights_is_enough(tmp_path, capsys):
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN))
    by_folder = plan(tmp_path / "a", folder, "--precision", "bf16", "--memory.limit_bytes", 20 << 30)
    by_file = plan(tmp_path / "b", folder / "config.json", "--precision", "bf16", "--memory.limit_bytes", 20 << 30)
    assert by_folder["parameters"] == 494_032_768
    assert {**by_folder, "model": ""} == {**by_file, "model": ""}
    assert by_folder["seconds_per_epoch"] is None
    shown = capsys.readouterr().out
    for line in ("activations", "lora fp32", "lora bf16", "full fp32", "full bf16"):
        assert line in shown


def test_what_does_not_fit_says_what_to_type(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(QWEN))
    words = ["--batch.rows", 4, "--cutoff", 512, "--precision", "bf16", "--memory.checkpointing", "off"]
    tight = plan(tmp_path / "a", tmp_path / "config.json", *words, "--memory.limit_bytes", 4 << 30)
    assert not tight["fits"]
    assert "does NOT fit" in capsys.readouterr().out
    later = dict(zip(words[::2], words[1::2], strict=True))
    advised = tight["advice"].split()
    later.update(zip(advised[::2], advised[1::2], strict=True))
    typed = [part for pair in later.items() for part in pair]
    assert plan(tmp_path / "b", tmp_path / "config.json", *typed, "--memory.limit_bytes", 4 << 30)["fits"]


def test_rows_give_the_longest_batch_and_the_time_of_an_epoch(tmp_path, model, rows):
    words = ["--dataset", rows, "--precision", "fp32", "--batch.rows", 4, "--calibration_seconds", 0.05]
    made = plan(tmp_path / "a", model, *words)
    assert 0 < made["seconds_per_epoch"] < 60
    prepared = plan(tmp_path / "b", model, "--dataset", tmp_path / "a", "--precision", "fp32", "--batch.rows", 4,
                    "--calibration_seconds", 0)  # fmt: skip
    assert prepared["seconds_per_epoch"] is None
    assert prepared["total_bytes"] == made["total_bytes"]
    longest = plan(tmp_path / "c", model, "--batch.rows", 4, "--precision", "fp32", "--cutoff", 2048)
    assert longest["activations_bytes"] > made["activations_bytes"]
    prepared_rows = Rows(tmp_path / "a" / "dataset", "train")
    largest = largest_passes(prepared_rows, BatchConfig(rows=4), ALONE, 42)
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    assert made["logits_bytes"] == 4 * min(largest[0]["labelled"], CHUNK) * vocabulary


def test_the_pass_is_planned_that_takes_the_most(tmp_path, model, capsys):
    """The longest row stands alone in its step, others come later in theirs: gradients of full tuning weigh more than its length."""
    lines = [{"instruction": "ha", "output": "ha " * 9 * n} for n in (9, 13, 9)]
    (tmp_path / "rows.json").write_text(json.dumps(lines))
    plan(tmp_path / "a", model, "--dataset", tmp_path / "rows.json", "--calibration_seconds", 0)
    made, shape = Rows(tmp_path / "a" / "dataset", "train"), read_shape(find("embedded").base)
    batch, longest = BatchConfig(rows=1, accumulate=2), max(made.lengths)
    tries = ((seed, *largest_passes(made, batch, ALONE, seed)) for seed in range(999))
    seed, first, later = next(it for it in tries if it[1]["tokens"] >= longest > it[2]["tokens"])
    words = {"model": "embedded", "dataset": {"path": [str(tmp_path)]}, "batch": batch.model_dump(), "seed": seed}
    for kind, wanted in (("lora", first), ("full", later)):
        wishes = wishes_of(PlanConfig.model_validate({**words, "method": {"kind": kind}}), shape, made, "fp32")
        wish = heaviest(shape, wishes, probe())
        assert (wish.lengths, wish.accumulate) == (wanted["lengths"], wanted["accumulate"])
    capsys.readouterr()
    typed = [
        "--dataset",
        tmp_path / "a",
        *f"--batch.rows 1 --batch.accumulate 2 --seed {seed} --precision fp32".split(),
    ]
    for number, kind in enumerate(("lora", "full")):
        plan(tmp_path / f"beside {number}", "embedded", *typed, "--calibration_seconds", 0, "--method.kind", kind)
    beside = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("  lora fp32", "  full fp32"))]
    assert sorted(beside[:2]) == sorted(beside[2:])  # whichever is wished, either has its own pass


@pytest.mark.parametrize(
    ("layers", "is_spared"), [(1, True), (3, True), (4, False)], ids=["one trained", "three of four", "all trained"]
)
def test_a_further_epoch_leaves_out_what_is_read_from_disk(tmp_path, rows, capsys, layers, is_spared):
    deep = write_tiny_model(tmp_path / "deep", layers=4)
    words = ["--dataset", rows, "--method.kind", "lora", "--method.last_layers", layers, "--calibration_seconds", 0.05]
    made = plan(tmp_path / "a", deep, *words)
    assert 0 < made["seconds_per_further_epoch"] <= made["seconds_per_epoch"]
    assert (made["seconds_per_further_epoch"] < made["seconds_per_epoch"]) == is_spared
    assert ("each further" in capsys.readouterr().out) == is_spared


def test_without_weights_time_is_not_measured(tmp_path, model, rows, capsys):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (bare / name).write_bytes((model / name).read_bytes())
    made = plan(tmp_path / "a", bare, "--dataset", rows)
    assert made["seconds_per_epoch"] is None
    assert "no weights here" in capsys.readouterr().out


def test_training_is_not_changed_by_the_calibration(tmp_path, model, rows):
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    plan(tmp_path / "a", model, "--dataset", rows, "--method.kind", "full", "--calibration_seconds", 0.01)
    assert before == {path.name: path.read_bytes() for path in model.iterdir()}


@pytest.mark.parametrize(
    ("config", "words", "code", "said"),
    [
        ({**QWEN, "model_type": "qwen9"}, [], 4, "no family"),
        ({**QWEN, "num_experts": 60}, [], 4, "mixture of experts"),
        (QWEN, ["--method.rank", "0"], 2, "method.rank"),
        (QWEN, ["--method.targets", "[attn]"], 2, "names no linear layer"),
        (QWEN, ["--dataset", "rows.jsonl"], 4, "has no tokenizer"),
    ],
)
def test_wrong_words_end_in_one_line(tmp_path, capsys, config, words, code, said):
    (tmp_path / "config.json").write_text(json.dumps(config))
    out = tmp_path / "run"
    assert cli.main(["plan", str(tmp_path), *words, "--out", str(out)]) == code
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error
    assert not out.exists()


def test_preview():
    assert "rows of 1024 tokens" in preview(load(PlanConfig, {"model": "embedded"}))
    assert "the rows of a.json" in preview(load(PlanConfig, {"model": "embedded", "dataset": "a.json"}))
