"""SIGTERM and Ctrl-C: the step is finished and saved, the exit code is 75, and --resume has the same losses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tunesmith.core.errors import Interrupted, Paused
from tunesmith.core.run import Run
from tunesmith.training import loop
from tunesmith.training.loop import loss_series
from tunesmith.training.stop import Stop

WISHES = {"save__every_steps": 100, "evaluation__every_steps": 5, "method__dropout": 0.2}


def losses(folder) -> list:
    run = Run("train", folder)
    held = [event["held_out_loss"] for event in run.events() if event["event"] == "evaluation"]
    return [event["loss"] for event in loss_series(run).values()] + held


@contextmanager
def signal_at(number: int, kind: str, step: int, *, again: bool = False) -> Iterator[None]:
    """The process gets the signal with the event of that step, or in the evaluation after it."""
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

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "event", speak)
        patch.setattr(loop, "held_out_scores", score)
        yield


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    """(folder, Training) of a run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, train(folder, **WISHES)


@pytest.mark.parametrize(
    ("number", "kind", "step"),
    [
        (signal.SIGTERM, "step", 7), (signal.SIGTERM, "step", 5), (signal.SIGTERM, "evaluation", 5),
        (signal.SIGTERM, "evaluation", 18), (signal.SIGTERM, "step", 18), (signal.SIGINT, "step", 7),
        (signal.SIGINT, "evaluation", 5),
    ],
)  # fmt: skip
def test_a_stopped_run_goes_on_as_if_it_had_not_been(train, tmp_path, whole, number, kind, step):
    folder, made = whole
    paused = pytest.raises(Paused, match=f"stopped by {number.name} .*--resume")
    with signal_at(number, kind, step), paused as stopped:
        train(tmp_path / "cut", **WISHES)
    assert stopped.value.exit_code == 75
    assert len(losses(tmp_path / "cut")) < len(losses(folder))
    assert signal.getsignal(number) in {signal.SIG_DFL, signal.default_int_handler}
    resumed = train(tmp_path / "cut", resume=True, **WISHES)
    assert losses(tmp_path / "cut") == losses(folder)
    assert (resumed.held_out_loss, resumed.train_loss) == (made.held_out_loss, made.train_loss)
    assert resumed.checkpoint.name == made.checkpoint.name


def test_before_the_first_step_there_is_nothing_to_save_and_the_run_can_begin_again(train, tmp_path, whole):
    with signal_at(signal.SIGTERM, "evaluation", 0), pytest.raises(Paused):
        train(tmp_path / "cut", **WISHES)
    train(tmp_path / "cut", resume=True, **WISHES)
    assert losses(tmp_path / "cut") == losses(whole[0])


def test_a_second_signal_ends_at_once(train, tmp_path):
    ended = pytest.raises(Interrupted, match="ended at once by a second signal, SIGTERM")
    with signal_at(signal.SIGTERM, "step", 7, again=True), ended:
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
