"""`kill -9` at any moment of a real process, then --resume: the loss series of the uninterrupted run, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest


def command(folder: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "tunesmith", "train", *words, "--out", str(folder), "--quiet"]


def options(tiny_model: Path, rows_file: Path) -> list[str]:
    return [
        str(rows_file), "--model", str(tiny_model), "--precision", "fp32", "--batch.rows", "4", "--optimizer.epochs", "6",
        "--optimizer.learning-rate", "0.01", "--save.every_steps", "3", "--evaluation.every_steps", "7",
        "--method.dropout", "0.1",
    ]  # fmt: skip


def series(folder: Path) -> dict[int, float]:
    lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    found: dict[int, float] = {}
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event["event"] == "step":
            found[event["step"]] = event["loss"]
    return found


def kill_at_event(process: subprocess.Popen[bytes], folder: Path, events: int) -> None:
    """Follow events.jsonl and kill the process with the `events`-th line, mid-save as often as not."""
    path = folder / "events.jsonl"
    while process.poll() is None:
        if path.is_file() and path.read_bytes().count(b"\n") >= events:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "argument", "counted", "at_least"),
    [("kills.py", "25", "kills", 25), ("faults.py", "7", "for_good", 10)],
)
def test_rehearsals(tmp_path, script, argument, counted, at_least):
    """`kill -9` in saves and out of them, and a disk that fails at every seventh operation, once and for good; the scripts judge the runs."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / script
    words = [sys.executable, str(path), argument, "--out", str(tmp_path / "found.json")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found["all_bit_identical"] is True
    assert found[counted] >= at_least


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_any_moment(tmp_path, tiny_model, rows_file, kills):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = options(tiny_model, rows_file)
    subprocess.run(command(tmp_path / "whole", *words), check=True, env=environment, timeout=300)
    wanted = series(tmp_path / "whole")
    assert len(wanted) == 54
    choose = random.Random(kills)
    for number in range(kills):
        folder = tmp_path / f"killed-{number}"
        process = subprocess.Popen(command(folder, *words), env=environment)
        kill_at_event(process, folder, choose.randint(1, 85))
        resumed = [sys.executable, "-m", "tunesmith", "train", str(folder), "--resume", "--quiet"]
        done = subprocess.run(resumed, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        assert series(folder) == wanted
        results = [json.loads((f / "result.json").read_text(encoding="utf-8")) for f in (tmp_path / "whole", folder)]
        assert results[0]["held_out_loss"] == results[1]["held_out_loss"]
        assert results[0]["train_loss"] == results[1]["train_loss"]
