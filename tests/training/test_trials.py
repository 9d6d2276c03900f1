"""What `auto` leaves to brief trainings before the first step: they find it, put everything back, and are made once."""

from __future__ import annotations

import json
import math
import signal
from dataclasses import replace

import pytest
import torch
import yaml

from runs import cut_at, events, losses
from school import PAIRS, VERDICTS
from tunesmith import cli, verbs
from tunesmith.core.config import load
from tunesmith.core.errors import Paused, UsageError
from tunesmith.core.run import Run
from tunesmith.models.load import find
from tunesmith.models.methods import Full
from tunesmith.models.shape import read_shape
from tunesmith.training.optimizer import usual_rate
from tunesmith.training.rates import FACTORS, MORE, beyond, choose, search
from tunesmith.training.trials import step_apart

AUTO = {"optimizer__learning_rate": "auto", "optimizer__epochs": 12, "evaluation__every_steps": 500}
"""On forty rows, four a step: 108 steps."""


@pytest.fixture(scope="module")
def auto(train, tmp_path_factory):
    """The folder of a run that has found its learning rate, and what it made; dropout takes random numbers."""
    folder = tmp_path_factory.mktemp("runs") / "auto"
    return folder, train(folder, method__dropout=0.1, **AUTO)


def found(folder, kind: str = "rates"):
    (event,) = events(folder, kind)
    return event


def test_the_run_is_that_of_a_config_with_the_chosen_rate_bit_for_bit(auto, train, tmp_path):
    folder, made = auto
    again = train(
        tmp_path / "run", **{**AUTO, "optimizer__learning_rate": found(folder)["chosen"]}, method__dropout=0.1
    )
    assert losses(folder) == losses(tmp_path / "run")
    assert made.held_out_loss == again.held_out_loss
    assert len(losses(folder)) == made.steps == 108


@pytest.mark.parametrize(
    "wishes",
    [
        {"objective__kind": "dpo"}, {"objective__kind": "reward"}, {"objective__kind": "kto"},
        {"method__kind": "qlora", "method__rank": 8}, {"method__kind": "full"}, {"method__kind": "prompt", "method__tokens": 8},
    ],
    ids=lambda wishes: next(iter(wishes.values())),
)  # fmt: skip
def test_every_objective_and_method_is_put_back_as_it_was(train, tmp_path, wishes):
    rows = {"dpo": PAIRS, "reward": PAIRS, "kto": VERDICTS}.get(wishes.get("objective__kind", ""))
    if rows:
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        wishes = {
            **wishes,
            "dataset__path": [str(tmp_path / "rows.jsonl")],
            "evaluation__share": 0.4,
            "optimizer__epochs": 20,
            "batch__rows": 2,
        }
    made = train(tmp_path / "auto", **{**AUTO, **wishes})
    event = found(tmp_path / "auto")
    assert {trial["learning_rate"]: trial["loss"] for trial in event["rates"]}[event["chosen"]] < event["base_loss"]
    again = train(tmp_path / "given", **{**AUTO, **wishes, "optimizer__learning_rate": event["chosen"]})
    assert losses(tmp_path / "auto") == losses(tmp_path / "given")
    assert made.held_out_loss == again.held_out_loss


def test_the_rate_is_among_those_tried_and_learns(auto):
    folder, made = auto
    event = found(folder)
    tried = {trial["learning_rate"]: trial["loss"] for trial in event["rates"]}
    assert len(FACTORS) <= len(tried) <= len(FACTORS) + MORE
    assert tried[event["chosen"]] < event["base_loss"]
    assert len(set(tried.values())) == len(tried)
    assert made.held_out_loss < made.base_held_out_loss
    assert event["held_out"] is True


def test_lock_and_config_name_the_number_and_the_chart_is_there(auto):
    folder, made = auto
    chosen = found(folder)["chosen"]
    lock = json.loads((folder / "lock.json").read_text(encoding="utf-8"))
    assert lock["config"]["optimizer"]["learning_rate"] == chosen
    assert yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["optimizer"]["learning_rate"] == chosen
    assert made.charts == ["loss.png", "loss.svg", "rates.svg"]
    assert f"chosen: {chosen:g}" in (folder / "rates.svg").read_text(encoding="utf-8")


def test_a_replay_and_a_resumed_run_take_the_number_and_search_no_more(auto, train, tmp_path, capsys):
    folder, _ = auto
    assert cli.main(["train", "--replay", str(folder), "--out", str(tmp_path / "again")]) == 0
    assert "the same loss series, bit for bit" in capsys.readouterr().out
    assert not events(tmp_path / "again", "rates")
    wishes = {**AUTO, "method__dropout": 0.1, "save__every_steps": 4}
    with cut_at(6):
        train(tmp_path / "cut", **wishes)
    train(tmp_path / "cut", resume=True, **wishes)
    assert len(events(tmp_path / "cut", "rates")) == 1
    assert losses(tmp_path / "cut") == losses(folder)


@pytest.mark.parametrize("step", [1, 9])
def test_a_run_that_is_stopped_while_it_searches_searches_anew(train, tmp_path, monkeypatch, step):
    done = []

    def stopped(*given, **more):
        done.append(1)
        if len(done) == step:
            signal.raise_signal(signal.SIGTERM)
        return step_apart(*given, **more)

    wishes = {**AUTO, "method__dropout": 0.1}
    paused = pytest.raises(Paused, match="stopped by SIGTERM while the learning rate was searched.*--resume")
    with monkeypatch.context() as patch, paused as caught:
        patch.setattr("tunesmith.training.trials.step_apart", stopped)
        (tmp_path / "run").mkdir()
        train(tmp_path / "run", **wishes)
    assert caught.value.exit_code == 75
    assert len(done) == step
    assert not (tmp_path / "run" / "lock.json").exists()
    train(tmp_path / "run", resume=True, **wishes)
    assert len(events(tmp_path / "run", "rates")) == 1


def test_trials_at_one_rate_are_alike_and_leave_random_numbers_and_model_alone(auto):
    from tunesmith.training.rates import with_rate
    from tunesmith.training.trials import bench, cut_slice
    from tunesmith.verbs.train import TrainConfig

    folder, _ = auto
    config = verbs.locked_config("train", folder)
    assert isinstance(config, TrainConfig)
    run = Run("train", folder, quiet=True)
    before = torch.get_rng_state()
    with bench(with_rate(config, 0.1), ready_of(config, folder), run) as made:
        cut = cut_slice("x", made.job, 7)
        start = {name: value.clone() for name, value in made.job.model.state_dict().items()}
        attributes = dict(vars(made.job.model))
        with run.progress("trials", 10) as bar:
            first, other, second = (made.train(cut, rate, bar).loss for rate in (0.01, 0.3, 0.01))
        assert first == second != other
        base, _ = made.prepare(cut)
        assert base == found(folder)["base_loss"]
        assert vars(made.job.model) == attributes
        made.put_back()
        assert all(torch.equal(start[name], value) for name, value in made.job.model.state_dict().items())
        assert all(parameter.grad is None for parameter in made.job.model.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def ready_of(config, folder):
    from tunesmith.data.dataset import open_dataset
    from tunesmith.training.job import Ready
    from tunesmith.verbs.train import _find, _plan

    run = Run("train", folder, quiet=True)
    base, tokenizer = _find(config)
    dataset = open_dataset(folder / "dataset")
    plan, _ = _plan(config, base, dataset, "fp32", run)
    return Ready(base, tokenizer, dataset, plan)


def test_no_trial_trains_on_what_is_scored_and_all_cost_a_quarter_at_most(auto, train, tmp_path):
    from tunesmith.training.rates import with_rate
    from tunesmith.training.trials import bench, cut_slice

    made = train(tmp_path / "run", **{**AUTO, "optimizer__epochs": 16}, evaluation__share=0)
    assert made.held_out_loss is None
    event = found(tmp_path / "run")
    assert event["held_out"] is False
    config = verbs.locked_config("train", tmp_path / "run")
    with bench(with_rate(config, 0.1), ready_of(config, tmp_path / "run"), Run("train", tmp_path, quiet=True)) as own:
        cut = cut_slice("x", own.job, 7)
    trained = {number for step in cut.steps for part in step for number in part}
    assert trained.isdisjoint(cut.scored)
    assert len(cut.scored) == event["scored"]
    assert 7 * cut.cost_steps <= made.steps / 4


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"optimizer.epochs": 1}, "a quarter of the run at most, so it needs .* steps. Got 'auto with 9'"),
        ({"optimizer.epochs": 1, "batch.rows": 30}, "steps"),
        (
            {"optimizer.epochs": 12, "evaluation.share": 0.05},
            "about 8 held-out rows to score. Got 'auto with 2'.*evaluation.share",
        ),
        ({"objective": {"kind": "grpo", "reward": "r.py:f"}}, "objective grpo learns from answers it draws"),
        ({"devices": {"kind": "ddp", "processes": 2}}, "devices.kind is ddp"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_line(train, tmp_path, wishes, said):
    from tunesmith.training import rates

    document = {"model": "embedded", "dataset": {"path": ["rows.jsonl"]}, "optimizer": {"learning_rate": "auto"}}
    if "optimizer.epochs" not in wishes:
        config = load(verbs.config_class("train"), {**document, **wishes}, [])
        with pytest.raises(UsageError, match=said):
            rates.check_rate(config)
        return
    with pytest.raises(UsageError, match=f"optimizer.learning_rate: .*{said}") as caught:
        train(tmp_path / "run", optimizer__learning_rate="auto", **{k.replace(".", "__"): v for k, v in wishes.items()})
    assert "\n" not in str(caught.value)


def test_a_rate_that_diverges_is_seen_and_not_chosen(train, tmp_path, monkeypatch):
    monkeypatch.setattr(Full, "usual_rate", lambda *_: 1e30)
    with pytest.raises(UsageError, match="no rate from .* lowers the loss"):
        train(tmp_path / "run", method__kind="full", **AUTO)
    event = found(tmp_path / "run")
    assert event["chosen"] is None
    assert all(trial["loss"] is None or trial["loss"] > event["base_loss"] for trial in event["rates"])
    assert any(trial["loss"] is None for trial in event["rates"])
    assert (tmp_path / "run" / "rates.svg").is_file()


def test_the_lowest_rate_that_wins_nearly_as_much_is_chosen():
    assert choose({1: 0.9, 2: 0.7, 4: 0.52, 8: 0.5, 16: 0.8}, base=1.0) == 4
    assert choose({1: 0.55, 2: 0.5, 4: None}, base=1.0) == 1
    assert choose({1: 1.2, 2: None}, base=1.0) is None
    assert choose({1: 1.0, 2: 1.0}, base=1.0) is None


def test_the_search_goes_on_beyond_an_edge_and_no_further_than_allowed():
    asked: list[float] = []

    def valley(at: float):
        def trial(rates):
            asked.extend(rates)
            return {rate: abs(math.log2(rate / at)) / 10 for rate in rates}

        return trial

    search([1, 2, 4, 8, 16], 0.25, valley(4))
    assert asked == [1, 2, 4, 8, 16]
    asked.clear()
    search([1, 2, 4, 8, 16], 0.5, valley(40))
    assert asked[5:] == [32, 64]
    asked.clear()
    search([1, 2, 4, 8, 16], 0.5, valley(0.3))
    assert asked[5:] == [0.5, 0.25]
    assert beyond({1: None, 2: None}, 1.0) == 0.5
    assert beyond({1: 1.1, 2: 1.05, 4: None}, 1.0) is None


@pytest.mark.parametrize(
    ("wishes", "rate"),
    [
        ({}, 8.8e-3),
        ({"method__kind": "full"}, 8.8e-4),
        ({"method__kind": "prompt"}, 3e-2),
    ],
)
def test_a_run_without_a_rate_takes_the_usual_one_of_its_method_and_writes_it_down(train, tmp_path, wishes, rate):
    train(tmp_path / "run", optimizer__learning_rate=None, optimizer__steps=2, **wishes)
    lock = json.loads((tmp_path / "run" / "lock.json").read_text(encoding="utf-8"))
    assert lock["config"]["optimizer"]["learning_rate"] == rate
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["optimizer"]["learning_rate"] == rate
    assert max(event["learning_rate"] for event in events(tmp_path / "run", "step")) == rate


@pytest.mark.parametrize(
    ("method", "hidden", "rates"),
    [
        ("lora", 4096, {"sft": 2e-4, "reward": 2e-4, "dpo": 5e-5, "kto": 5e-5}),
        ("lora", 576, {"sft": 9.24e-4, "dpo": 2.31e-4}),
        ("lora", 8192, {"sft": 1.16e-4}),
        ("full", 4096, {"sft": 2e-5}),
        ("full", 576, {"sft": 9.24e-5}),
        ("freeze", 576, {"sft": 2.31e-4}),
        ("prompt", 576, {"sft": 3e-2}),
    ],
)
def test_narrow_models_want_a_higher_rate_and_preferences_a_quarter(method, hidden, rates):
    shape = replace(read_shape(find("embedded").base), hidden=hidden)
    document = {"model": "embedded", "dataset": {"path": ["rows.jsonl"]}, "method": {"kind": method}}
    for objective, rate in rates.items():
        config = load(verbs.config_class("train"), {**document, "objective": {"kind": objective}}, [])
        assert usual_rate(config, shape) == rate
