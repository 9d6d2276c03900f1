"""SIGTERM and Ctrl-C: the step is finished and saved, the exit code is 75, and --resume has the same losses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from tunesmith.core.errors import Interrupted, Paused
from tunesmith.core.run import Run
from tunesmith.training.loop import loss_series
from tunesmith.training.stop import Stop

WISHES = {"save__every_steps": 100, "evaluation__every_steps": 5, "method__dropout": 0.2}


def losses(folder) -> list:
    run = Run("train", folder)
    held = [event["held_out_loss"] for event in run.events() if event["event"] == "evaluation"]
    return [event["loss"] for event in loss_series(run).values()] + held


@pytest.fixture
def signal_at(monkeypatch):
    """`signal_at(number, kind, step)`: the process gets the signal with that event, or in the evaluation after it."""

    def arrange(number: int, kind: str, step: int, again: bool = False) -> None:
        from tunesmith.training import loop

        event, scores, seen = Run.event, loop.held_out_scores, []

        def send() -> None:
            os.kill(os.getpid(), number)
            if again:
                os.kill(os.getpid(), number)

        def speak(self, said, **facts):
            event(self, said, **facts)
            seen.append(facts.get("step"))
            if kind == "step" and said == "step" and facts["step"] == step:
                send()

        def score(*words, **named):
            if kind == "evaluation" and (seen[-1:] == [step] or step == 0):
                send()
            return scores(*words, **named)

        monkeypatch.setattr(Run, "event", speak)
        monkeypatch.setattr(loop, "held_out_scores", score)

    return arrange


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("kind", "step"), [("step", 7), ("step", 5), ("evaluation", 5), ("evaluation", 18), ("step", 18)]
)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(train, tmp_path, signal_at, monkeypatch, number, kind, step):
    whole = train(tmp_path / "whole", **WISHES)
    with monkeypatch.context():
        signal_at(number, kind, step)
        with pytest.raises(Paused, match=f"stopped by {number.name} .*--resume") as stopped:
            train(tmp_path / "cut", **WISHES)
        monkeypatch.undo()
    assert stopped.value.exit_code == 75
    assert len(losses(tmp_path / "cut")) < len(losses(tmp_path / "whole"))
    assert signal.getsignal(number) in {signal.SIG_DFL, signal.default_int_handler}
    resumed = train(tmp_path / "cut", resume=True, **WISHES)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert (resumed.held_out_loss, resumed.train_loss) == (whole.held_out_loss, whole.train_loss)
    assert resumed.checkpoint.name == whole.checkpoint.name


def test_before_the_first_step_there_is_nothing_to_save_and_the_run_can_begin_again(
    train, tmp_path, signal_at, monkeypatch
):
    with monkeypatch.context():
        signal_at(signal.SIGTERM, "evaluation", 0)
        with pytest.raises(Paused):
            train(tmp_path / "cut", **WISHES)
        monkeypatch.undo()
    train(tmp_path / "cut", resume=True, **WISHES)
    train(tmp_path / "whole", **WISHES)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_second_signal_ends_at_once(train, tmp_path, signal_at):
    signal_at(signal.SIGTERM, "step", 7, again=True)
    with pytest.raises(Interrupted, match="ended at once by a second signal, SIGTERM"):
        train(tmp_path / "run", **WISHES)
    assert max(loss_series(Run("train", tmp_path / "run"))) == 7
    assert not (tmp_path / "run" / "checkpoints" / "checkpoint-000007").exists()


def test_outside_the_main_thread_signals_are_left_alone(tmp_path):
    before = signal.getsignal(signal.SIGTERM)

    def enter() -> None:
        with Stop(Run("train", tmp_path)) as stop:
            assert not stop.asked
            assert signal.getsignal(signal.SIGTERM) is before

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()


def test_the_process_ends_with_one_line_and_code_75(tmp_path, tiny_model, rows_file):
    words = [
        "train", str(rows_file), "--model", str(tiny_model), "--precision", "fp32", "--optimizer.epochs", "400",
        "--quiet", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tunesmith"]
    process = subprocess.Popen([*command, *words], env=environment, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and '"event": "step"' not in _read(tmp_path / "run" / "events.jsonl"):
        pass
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == Paused.exit_code
    (line,) = said.splitlines()
    assert line.startswith("train: stopped by SIGTERM after step ")
    assert line.endswith(f"tunesmith train {tmp_path / 'run'} --resume.")
    assert '"event": "paused"' in _read(tmp_path / "run" / "events.jsonl")


def _read(path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
