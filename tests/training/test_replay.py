"""--replay: a run made again from its lock has the same losses, or says what differs."""

from __future__ import annotations

import json
import shutil

import pytest

import tunesmith
from tunesmith import cli
from tunesmith.core.errors import DataError, ModelError, ProofError, UsageError
from tunesmith.core.run import Run
from tunesmith.training.lock import differences
from tunesmith.training.replay import compare

STEPS = {"optimizer__steps": 6, "method__dropout": 0.1}


def change(folder, name: str, edit) -> None:
    path = folder / name
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(edit(line) for line in lines) + "\n", encoding="utf-8")


def test_the_lock_names_all_that_decides_the_numbers(train, tmp_path):
    made = train(tmp_path / "run", **STEPS)
    lock = json.loads((tmp_path / "run" / "lock.json").read_text(encoding="utf-8"))
    facts = json.loads((made.dataset / "dataset.json").read_text(encoding="utf-8"))
    assert lock["config"]["optimizer"]["steps"] == 6
    assert lock["data"] == {key: facts[key] for key in ("data_sha256", "template_sha256")}
    assert len(lock["weights"]["weights_sha256"]) == 64
    assert {"tunesmith", "python", "torch", "transformers", "peft", "numpy"} <= set(lock["versions"])
    assert lock["machine"]["threads"] == 1
    assert lock["machine"]["precision"] == "fp32"
    assert lock["seed"] == 42


def test_a_replay_has_the_same_losses(train, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train(tmp_path / "run", **STEPS)
    assert cli.main(["train", "--replay", str(tmp_path / "run"), "--out", str(tmp_path / "again")]) == 0
    assert "the same loss series, bit for bit: 6 steps" in capsys.readouterr().out
    result = json.loads((tmp_path / "again" / "result.json").read_text(encoding="utf-8"))
    assert result["replay"]["same"] is True
    assert result["replay"]["steps"] == 6
    assert tunesmith.train(replay=tmp_path / "run", out=tmp_path / "third").replay["same"]


def test_other_losses_end_with_the_code_of_a_missing_proof_and_the_step(train, tmp_path, capsys):
    def worse(line: str) -> str:
        event = json.loads(line)
        if event["event"] == "step" and event["step"] in {3, 5}:
            event["loss"] += 0.25 * event["step"]
        return json.dumps(event)

    train(tmp_path / "run", **STEPS)
    change(tmp_path / "run", "events.jsonl", worse)
    code = cli.main(["train", str(tmp_path / "run"), "--replay", "--out", str(tmp_path / "again"), "--quiet"])
    assert code == ProofError.exit_code == 7
    said = capsys.readouterr().err
    assert "step 3 is the first to differ, apart by 0.75, at most 1.25 later" in said
    found = json.loads((tmp_path / "again" / "result.json").read_text(encoding="utf-8"))["replay"]
    assert (found["same"], found["first_step"]) == (False, 3)


def test_other_rows_or_weights_are_refused(train, tmp_path, tiny_model, rows_file, capsys):
    model, rows = tmp_path / "model", tmp_path / "rows.jsonl"
    shutil.copytree(tiny_model, model)
    shutil.copy(rows_file, rows)
    train(tmp_path / "run", **STEPS, model=str(model), dataset={"path": [str(rows)]})
    weights = model / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    replay = ["train", "--replay", str(tmp_path / "run"), "--quiet", "--out"]
    assert cli.main([*replay, str(tmp_path / "a")]) == ModelError.exit_code
    assert "the base model has other weights than then" in capsys.readouterr().err
    assert cli.main(["train", str(tmp_path / "run"), "--resume", "--quiet"]) == ModelError.exit_code
    weights.write_bytes(before)
    change(tmp_path, "rows.jsonl", lambda line: line.replace("Lamp 7 is green", "Lamp 7 is blue"))
    capsys.readouterr()
    assert cli.main([*replay, str(tmp_path / "b")]) == DataError.exit_code
    assert "the rows are not what the run was made with" in capsys.readouterr().err


def test_other_versions_are_said_aloud(train, tmp_path, capsys):
    train(tmp_path / "run", **STEPS)
    path = tmp_path / "run" / "lock.json"
    lock = json.loads(path.read_text(encoding="utf-8"))
    lock["versions"]["torch"] = "2.0.0"
    lock["machine"]["threads"] = 64
    path.write_text(json.dumps(lock), encoding="utf-8")
    assert cli.main(["train", "--replay", str(tmp_path / "run"), "--out", str(tmp_path / "again"), "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "torch was 2.0.0 and is" in said
    assert "threads was 64 and is 1" in said
    assert len(differences(lock, json.loads((tmp_path / "again" / "lock.json").read_text(encoding="utf-8")))) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--replay"], "--replay: needs a run folder"),
        (["train", "--replay", "nowhere"], "which holds lock.json"),
        (["train", "--replay", "nowhere", "--seed", "1"], "takes the config of the run as it is"),
        (["train", "--replay", "--resume", "nowhere"], "runs anew"),
        (["prepare", "--replay", "nowhere"], "prepare cannot be replayed"),
    ],
)
def test_what_cannot_be_replayed(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == UsageError.exit_code
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_resumed_run_may_not_change_its_config(train, tmp_path):
    train(tmp_path / "run", **STEPS)
    with pytest.raises(UsageError, match="the config is another one now: seed"):
        train(tmp_path / "run", resume=True, **STEPS, seed=1)


def test_a_replay_of_an_interrupted_run_counts_as_far_as_it_came(train, tmp_path):
    train(tmp_path / "run", **STEPS)
    change(tmp_path / "run", "events.jsonl", lambda line: "" if '"step": 6' in line or '"step": 5' in line else line)
    train(tmp_path / "again", **STEPS)
    found = compare(Run("train", tmp_path / "run"), Run("train", tmp_path / "again"))
    assert (found.same, found.steps) == (True, 4)
    back = compare(Run("train", tmp_path / "again"), Run("train", tmp_path / "run"))
    assert (back.same, back.first_step) == (False, 5)
