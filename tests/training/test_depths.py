"""`method.last_layers: auto`: a few depths are trained briefly, loss stands against time, and the run goes on with one."""

from __future__ import annotations

import json

import pytest
import yaml

from runs import events, losses
from school import PAIRS, VERDICTS
from tunesmith import cli
from tunesmith.core.errors import CapacityError, UsageError
from tunesmith.training.depths import depths_of
from tunesmith.training.trials import least_enough

AUTO = {
    "method__last_layers": "auto",
    "optimizer__epochs": 6,
    "evaluation__every_steps": 500,
    "optimizer__learning_rate": 0.01,
}
"""On forty rows, four a step: 54 steps, of a model with two layers."""


@pytest.fixture(scope="module")
def auto(train, tmp_path_factory):
    """The folder of a run that has found its depth, and what it made; dropout takes random numbers."""
    folder = tmp_path_factory.mktemp("runs") / "auto"
    return folder, train(folder, method__dropout=0.1, **AUTO)


def found(folder):
    (event,) = events(folder, "depths")
    return event


def test_the_run_is_that_of_a_config_with_the_chosen_depth_bit_for_bit(auto, train, tmp_path):
    folder, made = auto
    wishes = {**AUTO, "method__last_layers": found(folder)["chosen"], "method__dropout": 0.1}
    again = train(tmp_path / "run", **wishes)
    assert losses(folder) == losses(tmp_path / "run")
    assert made.held_out_loss == again.held_out_loss
    assert made.trainable_parameters == again.trainable_parameters


def test_every_depth_stands_with_its_loss_its_time_and_its_memory(auto):
    folder, made = auto
    event = found(folder)
    shallow, deep = sorted(event["depths"], key=lambda one: one["layers"])
    assert [shallow["layers"], deep["layers"]] == [1, 2]
    assert event["chosen"] in {1, 2}
    assert shallow["loss"] < event["base_loss"]
    assert shallow["loss"] != deep["loss"] < event["base_loss"]
    assert 0 < shallow["memory_bytes"] < deep["memory_bytes"]
    assert min(shallow["run_seconds"], deep["run_seconds"]) > 0
    assert [shallow["cached_layers"], deep["cached_layers"]] == [1, 0]
    assert made.held_out_loss < made.base_held_out_loss


def test_lock_config_and_chart_name_the_number(auto, capsys, tmp_path):
    folder, made = auto
    chosen = found(folder)["chosen"]
    lock = json.loads((folder / "lock.json").read_text(encoding="utf-8"))
    assert lock["config"]["method"]["last_layers"] == chosen
    assert yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["method"]["last_layers"] == chosen
    assert made.charts == ["loss.png", "loss.svg", "depths.svg"]
    assert f"{chosen} of 2 layers, chosen" in (folder / "depths.svg").read_text(encoding="utf-8")
    assert cli.main(["train", "--replay", str(folder), "--out", str(tmp_path / "again")]) == 0
    assert "the same loss series, bit for bit" in capsys.readouterr().out
    assert not events(tmp_path / "again", "depths")


@pytest.mark.parametrize(
    "wishes",
    [
        {"method__kind": "freeze", "method__layers": "auto"}, {"method__kind": "bottleneck"}, {"method__kind": "qlora"},
        {"objective__kind": "dpo"}, {"objective__kind": "kto"},
    ],
    ids=lambda wishes: next(iter(wishes.values())),
)  # fmt: skip
def test_other_methods_and_objectives_have_it_too(train, tmp_path, wishes):
    wishes = {**AUTO, **wishes}
    rows = {"dpo": PAIRS, "kto": VERDICTS}.get(wishes.get("objective__kind", ""))
    if rows:
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        wishes |= {"dataset__path": [str(tmp_path / "rows.jsonl")], "evaluation__share": 0.4, "batch__rows": 2}
    if wishes.get("method__kind") == "freeze":
        del wishes["method__last_layers"]
    made = train(tmp_path / "run", **wishes)
    event = found(tmp_path / "run")
    assert [one["layers"] for one in event["depths"]] == [2, 1]
    assert len({one["loss"] for one in event["depths"]}) == 2
    assert made.held_out_loss < made.base_held_out_loss


def test_depth_and_rate_are_both_found_the_depth_first(train, tmp_path):
    wishes = {**AUTO, "optimizer__learning_rate": "auto", "optimizer__epochs": 12}
    made = train(tmp_path / "run", **wishes)
    assert made.charts == ["loss.png", "loss.svg", "depths.svg", "rates.svg"]
    lock = json.loads((tmp_path / "run" / "lock.json").read_text(encoding="utf-8"))["config"]
    assert lock["method"]["last_layers"] == found(tmp_path / "run")["chosen"]
    assert lock["optimizer"]["learning_rate"] == events(tmp_path / "run", "rates")[0]["chosen"]


def test_depths_that_do_not_fit_are_not_compared_and_none_that_fits_is_refused(auto, train, tmp_path):
    folder, _ = auto
    need = {one["layers"]: one["memory_bytes"] for one in found(folder)["depths"]}
    wishes = {**AUTO, "method__dropout": 0.1, "memory__checkpointing": "off"}
    train(tmp_path / "run", memory__limit_bytes=(need[1] + need[2]) // 2, **wishes)
    assert [one["layers"] for one in found(tmp_path / "run")["depths"]] == [1]
    with pytest.raises(CapacityError, match="even training 1 of . layers needs about"):
        train(tmp_path / "none", memory__limit_bytes=need[1] // 2, **wishes)


def test_a_depth_that_lowers_no_loss_is_not_chosen(train, tmp_path):
    with pytest.raises(UsageError, match="method.last_layers: no depth lowers the loss in .* at learning rate 1e\\+30"):
        train(tmp_path / "run", **{**AUTO, "optimizer__learning_rate": 1e30})
    assert found(tmp_path / "run")["chosen"] is None
    assert (tmp_path / "run" / "depths.svg").is_file()


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"optimizer__epochs": 1}, "method.last_layers: 2 trials should cost a quarter"),
        ({"devices__kind": "ddp", "devices__processes": 2}, "method.last_layers: .*devices.kind is ddp"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(train, tmp_path, wishes, said):
    with pytest.raises(UsageError, match=said) as caught:
        train(tmp_path / "run", **{**AUTO, **wishes})
    assert "\n" not in str(caught.value)


def test_all_a_third_and_an_eighth_of_the_layers_are_compared():
    assert [depths_of(layers) for layers in (32, 30, 12, 2, 1)] == [[32, 11, 4], [30, 10, 4], [12, 4, 2], [2, 1], [1]]
    assert least_enough({30: 1.0, 10: 1.09, 4: 1.2}, base=2.0, enough=0.9) == 10
    assert least_enough({30: None, 4: 1.2}, base=2.0, enough=0.9) == 4
