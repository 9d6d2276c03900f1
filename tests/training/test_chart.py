"""Charts have a panel for every number that steps and evaluations carry."""

from __future__ import annotations

import pytest

from tunesmith.core.run import Run
from tunesmith.training.chart import _panels, draw_losses


@pytest.fixture
def run(tmp_path) -> Run:
    run = Run("train", tmp_path)
    for step in range(1, 30):
        run.event(
            "step", step=step, loss=1 / step, learning_rate=1e-4, gradient_norm=None if step == 3 else 2.0, count=4,
            labels=40, tokens=100, tokens_per_second=99.5, memory_bytes=step << 28, accuracy=step / 30,
        )  # fmt: skip
    run.event("evaluation", step=10, held_out_loss=0.5, held_out_accuracy=0.6, best=True)
    return run


def test_every_number_has_a_panel(run):
    events = list(run.events())
    steps = {event["step"]: event for event in events if event["event"] == "step"}
    held = {event["step"]: event for event in events if event["event"] == "evaluation"}
    panels = _panels(steps, held)
    assert list(panels) == ["learning_rate", "gradient_norm", "tokens_per_second", "memory_bytes", "accuracy"]
    assert [label for label, _, _ in panels["accuracy"]] == ["training", "held-out"]
    assert panels["accuracy"][1][2] == {10: 0.6}
    assert 3 not in panels["gradient_norm"][0][2]


def test_the_picture_shows_them(run):
    assert draw_losses(run) == ["loss.png", "loss.svg"]
    picture = (run.folder / "loss.svg").read_text(encoding="utf-8")
    for said in (
        "training loss, smoothed",
        "held-out loss",
        "learning rate",
        "gradient norm",
        "memory, GiB",
        "accuracy",
    ):
        assert f"<!-- {said} -->" in picture


def test_a_run_without_evaluation_or_steps_is_drawn_too(tmp_path):
    run = Run("train", tmp_path)
    run.event("step", step=1, loss=None, learning_rate=0.1)
    assert draw_losses(run)
