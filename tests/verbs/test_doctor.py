"""`tunesmith doctor` of a run and of the machine, as a person types it."""

from __future__ import annotations

import json
import shutil

import pytest

from tunesmith import cli
from tunesmith.core.errors import DiseaseFound, UsageError

QUICK = ["--precision", "fp32", "--batch.rows", "4", "--quiet", "--diagnosis.samples", "0", "--diagnosis.general", "0"]


@pytest.fixture(scope="session")
def runs(tmp_path_factory, tiny_model, rows_file):
    """A healthy run and one with far too high a learning rate."""
    folder = tmp_path_factory.mktemp("doctor")
    for name, rate in (("healthy", "0.01"), ("sick", "30")):
        words = ["train", str(rows_file), "--model", str(tiny_model), *QUICK, "--method.kind", "full", "--out"]
        rated = [
            *words,
            str(folder / name),
            "--learning_rate",
            rate,
            "--optimizer.epochs",
            "2",
            "--evaluation.every_steps",
            "6",
        ]
        assert cli.main(rated) == 0
    return folder


def result(folder):
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def test_nothing_found(runs, tmp_path, capsys):
    assert cli.main(["doctor", str(runs / "healthy"), "--out", str(tmp_path / "d"), "--strict", "true"]) == 0
    said = capsys.readouterr().out
    assert "nothing found" in said
    assert "18 steps, finished" in said
    assert "not judged  collapse: no sample answers were asked for" in said
    assert result(tmp_path / "d")["findings"] == []
    assert (tmp_path / "d" / "doctor.png").stat().st_size > 10_000


def test_findings_with_evidence_and_remedy(runs, tmp_path, capsys):
    assert cli.main(["doctor", str(runs / "sick"), "--out", str(tmp_path / "d")]) == 0
    said = capsys.readouterr().out
    assert "learning_rate_too_high  since step 0: the loss on training rows went from" in said
    assert "--optimizer.learning_rate 3" in said
    (found,) = result(tmp_path / "d")["findings"]
    assert found["name"] == "learning_rate_too_high"
    assert found["numbers"]["after"] > found["numbers"]["untrained"]


def test_strict_ends_with_its_exit_code_and_a_result_all_the_same(runs, tmp_path, capsys):
    code = cli.main(["doctor", str(runs / "sick"), "--out", str(tmp_path / "d"), "--strict", "true"])
    assert code == DiseaseFound.exit_code == 9
    assert "found learning_rate_too_high" in capsys.readouterr().err
    assert result(tmp_path / "d")["findings"]


def test_a_run_without_the_monitors_events_is_judged_by_what_there_is(runs, tmp_path):
    folder = shutil.copytree(runs / "sick", tmp_path / "old")
    lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if json.loads(line)["event"] not in {"facts", "probe", "finding"}]
    (folder / "events.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")
    (folder / "result.json").unlink()
    assert cli.main(["doctor", str(folder), "--out", str(tmp_path / "d"), "--quiet"]) == 0
    found = result(tmp_path / "d")
    assert found["finished"] is False
    assert "learning_rate_too_high" in found["not_judged"]
    assert "nothing_trained" not in found["not_judged"]


def test_what_the_rest_of_the_run_does_not_confirm_has_passed(runs, tmp_path):
    folder = shutil.copytree(runs / "healthy", tmp_path / "once")
    with (folder / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"time": 1, "event": "finding", "name": "overfitting", "step": 3}\n')
    assert cli.main(["doctor", str(folder), "--out", str(tmp_path / "d"), "--quiet"]) == 0
    assert [event["name"] for event in result(tmp_path / "d")["passed"]] == ["overfitting"]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({}, "is not a run"),
        ({"events.jsonl": '{"event": "started", "verb": "evaluate"}'}, "is no training run"),
        ({"events.jsonl": '{"event": "started", "verb": "train"}', "config.yaml": "{}"}, "ended before anything"),
        ({"train/events.jsonl": "{}"}, "Did you mean"),
    ],
)
def test_what_is_no_training_run(tmp_path, capsys, made, said):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, text in made.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text + "\n", encoding="utf-8")
    assert cli.main(["doctor", str(folder), "--out", str(tmp_path / "d")]) == UsageError.exit_code
    line = capsys.readouterr().err
    assert said in line
    assert len(line.splitlines()) == 1
    assert not (tmp_path / "d").exists()


def test_the_machine(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cli.main(["doctor", "--out", str(tmp_path / "d")]) == 0
    said = capsys.readouterr().out
    for name in ("python", "sqlite", "gpu", "memory", "disk cache", "embedded model", "hub"):
        assert f"  {name} " in said
    assert {check["state"] for check in result(tmp_path / "d")["checks"]} <= {"ok", "note", "missing"}


def test_the_machine_strictly(tmp_path, monkeypatch):
    from tunesmith.planning import checkup

    monkeypatch.setattr(checkup, "model", lambda: checkup.Check("embedded model", "missing", "gone", "Get it"))
    assert cli.main(["doctor", "--out", str(tmp_path / "d"), "--strict", "true", "--quiet"]) == 9
    assert result(tmp_path / "d")["missing"] == ["embedded model"]


@pytest.mark.parametrize(
    ("name", "content", "code", "said"),
    [
        ("events.jsonl", "", 2, "is no training run"),
        ("events.jsonl", "{}\n[1]\n\x00", 2, "is no training run"),
        ("config.yaml", "a: 1\n", 2, "unknown option 'a'"),
        ("config.yaml", "model: m\ndataset: d\noptimizer: x\n", 2, "optimizer: should be"),
        ("result.json", "[1]", 3, "result.json: must be an object. Got list."),
        ("dataset/dataset.json", "{}", 3, "has a damaged dataset.json"),
        ("dataset/ledger.jsonl", '{"a": 1}\n', 3, "has a damaged ledger.jsonl"),
    ],
)
def test_a_damaged_run_is_named_in_one_line(runs, tmp_path, capsys, name, content, code, said):
    shutil.copytree(runs / "healthy", tmp_path / "damaged")
    (tmp_path / "damaged" / name).write_text(content, encoding="utf-8")
    assert cli.main(["doctor", str(tmp_path / "damaged"), "--out", str(tmp_path / "d")]) == code
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error


def test_torn_lines_and_lines_that_are_no_events_are_passed_over(runs, tmp_path):
    shutil.copytree(runs / "healthy", tmp_path / "torn")
    (tmp_path / "torn" / "result.json").unlink()
    with (tmp_path / "torn" / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"no": "event"}\n[]\n{"event": "st')
    assert cli.main(["doctor", str(tmp_path / "torn"), "--out", str(tmp_path / "d")]) == 0
    assert result(tmp_path / "d")["finished"] is False
