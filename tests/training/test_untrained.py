"""What the untrained model says is asked once; a run that reads it has the events and losses of the one that asked."""

from __future__ import annotations

import json

import pytest

from runs import events, losses
from tunesmith.training import loop, untrained
from tunesmith.training.probes import Probes
from tunesmith.training.untrained import Untrained

WISHES = {"optimizer__steps": 4, "evaluation__every_steps": 2, "method__dropout": 0.1}


@pytest.fixture
def asked(monkeypatch):
    """What the model is asked, in words."""
    said = []
    probe, scores = Probes.__call__, loop.held_out_scores
    monkeypatch.setattr(Probes, "__call__", lambda *all: said.append("probe") or probe(*all))
    monkeypatch.setattr(loop, "held_out_scores", lambda *all, **more: said.append("score") or scores(*all, **more))
    return said


def told(folder):
    """What evaluations and probes wrote down, without the time."""
    return [
        {key: value for key, value in event.items() if key != "time"}
        for kind in ("evaluation", "probe", "finding")
        for event in events(folder, kind)
    ]


def entry_of(tmp_path):
    (entry,) = (tmp_path / "cache" / "untrained").iterdir()
    return entry


def test_a_second_run_reads_the_numbers_and_has_the_same_losses_and_events(train, tmp_path, asked):
    first = train(tmp_path / "a", **WISHES)
    whole = len(asked)
    second = train(tmp_path / "b", **WISHES)
    assert whole == 9  # held-out rows, training rows and probe: before step 1, after steps 2 and 4
    assert len(asked) - whole == 6
    assert losses(tmp_path / "b") == losses(tmp_path / "a")
    assert told(tmp_path / "b") == told(tmp_path / "a")
    assert second.base_held_out_loss == first.base_held_out_loss
    assert second.held_out_loss == first.held_out_loss


def test_a_run_that_does_not_learn_longer_or_at_another_rate_from_other_numbers(train, tmp_path, asked):
    train(tmp_path / "a", **WISHES)
    asked.clear()
    train(tmp_path / "b", **{**WISHES, "optimizer__steps": 2, "optimizer__learning_rate": 0.003})
    assert len(asked) == 3


@pytest.mark.parametrize(
    "change",
    [{"seed": 7}, {"batch__rows": 2}, {"diagnosis__samples": 2}, {"evaluation__share": 0.2}, {"method__last_layers": 1}],
)  # fmt: skip
def test_another_option_asks_anew(train, tmp_path, asked, change):
    wishes = {"optimizer__steps": 1}
    train(tmp_path / "a", **wishes)
    whole = len(asked)
    train(tmp_path / "b", **{**wishes, **change})
    assert len(asked) == 2 * whole


def test_other_code_or_other_files_of_the_model_ask_anew(train, tmp_path, asked, monkeypatch):
    train(tmp_path / "a", optimizer__steps=1)
    whole = len(asked)
    with monkeypatch.context() as patch:
        patch.setattr(untrained.files, "sources_sha256", lambda package: "changed")
        train(tmp_path / "b", optimizer__steps=1)
    assert len(asked) == 2 * whole
    monkeypatch.setattr(untrained, "_files", lambda folder: "changed")
    train(tmp_path / "c", optimizer__steps=1)
    assert len(asked) == 3 * whole


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-9], lambda text: text.replace("loss", "lost", 1), lambda _: "[]"]
)
def test_a_damaged_entry_is_asked_anew(train, tmp_path, asked, damage):
    train(tmp_path / "a", **WISHES)
    whole, entry = len(asked), entry_of(tmp_path)
    before = entry.read_text(encoding="utf-8")
    entry.write_text(damage(before), encoding="utf-8")
    train(tmp_path / "b", **WISHES)
    assert len(asked) == 2 * whole
    assert entry.read_text(encoding="utf-8") == before
    assert told(tmp_path / "b") == told(tmp_path / "a")


def test_a_number_that_json_cannot_hold_is_not_kept(tmp_path):
    path = tmp_path / "numbers.json"
    assert Untrained(path).ask("held_out", lambda: {"held_out_loss": float("inf")}) == {"held_out_loss": float("inf")}
    assert not path.exists()
    third = 1 / 3
    assert Untrained(path).ask("held_out", lambda: {"held_out_loss": third}) == {"held_out_loss": third}
    assert Untrained(path).ask("held_out", dict) == {"held_out_loss": third}
    assert json.loads(path.read_text(encoding="utf-8"))["answers"] == {"held_out": {"held_out_loss": third}}


def test_where_the_numbers_come_from_is_said_once(tmp_path):
    lines, path = [], tmp_path / "numbers.json"
    for name in ("a", "b"):
        Untrained(path).ask(name, lambda: {"x": 1})
    again = Untrained(path, lines.append)
    again.ask("a", dict)
    again.ask("b", dict)
    assert lines == [f"cache     the untrained model's numbers, as found before, from {path}"]
