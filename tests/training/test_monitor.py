"""Trackers get the numbers of events.jsonl, keep them in the run folder, and go on in the same run after --resume."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from tests.runs import cut_at, losses
from tunesmith import cli
from tunesmith.core.errors import MissingExtra, UsageError
from tunesmith.training import monitor
from tunesmith.training.monitor import NEEDS, START, TrackerName, check_trackers

WISHES = {"optimizer__steps": 8, "save__every_steps": 2, "evaluation__every_steps": 4}


def installed(name: str) -> bool:
    return all(importlib.util.find_spec(module) for module in NEEDS[name])


def by_step(folder: Path) -> dict[int, float]:
    return dict(enumerate(losses(folder), 1))


def cut_and_resume(train, folder: Path, *names: str) -> None:
    """A run that dies in step 7, after a checkpoint of step 6, and goes on."""
    with cut_at(7, after=True):
        train(folder, track=list(names), **WISHES)
    train(folder, resume=True, track=list(names), **WISHES)


def test_tensorboards_reader_finds_the_same_series(train, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cut_and_resume(train, tmp_path / "run", "tensorboard")
    read = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    series = {scalar.step: scalar.value for scalar in read.Scalars("loss")}
    assert series == pytest.approx(by_step(tmp_path / "run"), rel=1e-6)  # its files hold fp32
    assert [scalar.step for scalar in read.Scalars("loss")] == list(range(1, 9))  # step 7 once
    assert [scalar.step for scalar in read.Scalars("held_out_loss")] == [0, 4, 8]
    assert {"learning_rate", "gradient_norm", "tokens_per_second", "memory_bytes"} <= set(read.Tags()["scalars"])


def test_mlflow_keeps_one_run_in_the_run_folder(train, tmp_path, monkeypatch):
    if not installed("mlflow"):
        pytest.skip("the extra track")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    cut_and_resume(train, tmp_path / "run", "mlflow")
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'run' / 'mlflow' / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("tunesmith").experiment_id])
    history = {metric.step: metric.value for metric in client.get_metric_history(found.info.run_id, "loss")}
    assert history == by_step(tmp_path / "run")
    assert found.info.status == "FINISHED"
    assert "tiny" in found.data.params["model"]
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


SCRIPT = """
import socket, sys
connect = socket.socket.connect
def guarded(self, address):
    if isinstance(address, tuple) and address[0] not in {"127.0.0.1", "::1", "localhost"}:
        print("REACHED OUT", address, file=sys.stderr)
        raise OSError(f"reached out to {address}")
    return connect(self, address)
socket.socket.connect = guarded
from tunesmith import cli
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "swanlab", "trackio"])
def test_offline_by_default_and_silent(tmp_path, tiny_model, rows_file, name):
    """In a process of its own: these libraries start services and keep what they once read of the environment."""
    if not installed(name):
        pytest.skip(f"{name} is not installed")
    folder, known = tmp_path / "run", {"WANDB_", "SWANLAB_", "TRACKIO_"}
    environment = {key: value for key, value in os.environ.items() if not key.startswith(tuple(known))}
    environment |= {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    words = [
        "train", str(rows_file), "--model", str(tiny_model), "--precision", "fp32", "--optimizer.steps", "4",
        "--track", name, "--json",
    ]  # fmt: skip
    command = [sys.executable, "-c", SCRIPT]
    for more in (["--out", str(folder)], []):
        words = [*words, *more] if more else ["train", str(folder), "--resume", "--json"]
        done = subprocess.run(
            [*command, *words], env=environment, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "REACHED OUT" not in done.stderr
        assert json.loads(done.stdout)["steps"] == 4  # nothing else on standard output
    identity = json.loads((folder / "track.json").read_text(encoding="utf-8"))[name]
    FOUND[name](folder, identity)


def records(data: bytes, block: int = 1 << 15):
    """Those of a LevelDB log after seven bytes of its own: check sum 4, length 2, kind 1 (whole, first, middle, last)."""
    place, parts = 7, b""
    while place + 7 <= len(data):
        left = block - place % block
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in {1, 4}:
            yield parts
            parts = b""


def wandb_files(folder: Path, identity: str) -> None:
    runs = list((folder / "wandb").glob(f"offline-run-*-{identity}/run-{identity}.wandb"))
    assert runs
    from wandb.proto import wandb_internal_pb2

    series = {}
    for path in sorted(runs):
        for data in records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            row = {(item.key or item.nested_key[0]): item.value_json for item in record.history.item}
            if "loss" in row:
                series[int(row["_step"])] = float(row["loss"])
    assert series == by_step(folder)


def swanlab_files(folder: Path, identity: str) -> None:
    assert list((folder / "swanlab").glob(f"run-*-{identity}/run-{identity}.swanlab"))


def trackio_files(folder: Path, identity: str) -> None:
    import sqlite3

    (path,) = (folder / "trackio").glob("*.db")
    rows = sqlite3.connect(path).execute("select run_name, step, metrics from metrics").fetchall()
    assert all(name.endswith(identity) for name, _, _ in rows)
    series = {step: json.loads(metrics)["loss"] for _, step, metrics in rows if "loss" in json.loads(metrics)}
    assert series == by_step(folder)


FOUND = {"wandb": wandb_files, "swanlab": swanlab_files, "trackio": trackio_files}


@pytest.mark.parametrize("name", get_args(TrackerName))
def test_a_missing_library_is_named_before_the_run(monkeypatch, name):
    monkeypatch.setattr(monitor.importlib.util, "find_spec", lambda module: None)
    extra = "trackio" if name == "trackio" else "track"
    with pytest.raises(MissingExtra, match=rf"track: {name} needs {NEEDS[name][0]}.*tunesmith\[{extra}\]"):
        check_trackers([name])
    assert set(START) == set(NEEDS) == set(get_args(TrackerName))


def test_words_that_are_no_tracker(tmp_path, capsys):
    words = ["train", "rows.jsonl", "--model", "m", "--track"]
    assert cli.main([*words, "tensorbord"]) == UsageError.exit_code
    said = capsys.readouterr().err
    assert "must be one of tensorboard, wandb, swanlab, trackio, mlflow" in said
    assert "Did you mean 'tensorboard'?" in said
    assert cli.main([*words, "[tensorboard, mlflow]", "--dry-run"]) == 0


def test_nothing_is_written_where_nothing_is_tracked(train, tmp_path):
    train(tmp_path / "run", **WISHES)
    assert not {"track.json", "track.log", "tensorboard"} & {path.name for path in (tmp_path / "run").iterdir()}
