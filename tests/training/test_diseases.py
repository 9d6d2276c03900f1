"""Diseases by the numbers alone: what a run would have to write down, and the edge next to it."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from tunesmith.training.diagnosis import diagnose
from tunesmith.training.diseases import DISEASES, exploding_gradients
from tunesmith.training.record import Record

FACTS = {
    "event": "facts", "rows": 100, "held_out_rows": 10, "kept": 110, "end_token_lost": 0, "trained_tokens": 1000,
    "vocabulary": 1000, "objective": "sft", "steps": 40, "steps_per_epoch": 20, "learning_rate": 1e-3,
}  # fmt: skip
GOOD = {
    "answer": "a",
    "tokens": 10,
    "ended": True,
    "repetition": 0.0,
    "reference_tokens": 10,
    "reference_repetition": 0.0,
}


def record(**changes: Any) -> Record:
    """A healthy run of 40 steps with an evaluation every 10; `changes` replaces a number by a function of the step."""
    facts = FACTS | changes.pop("facts", {})
    at = lambda name, step, usual: changes.get(name, usual)(step)  # noqa: E731
    falling = lambda step: 3.0 - 0.05 * step  # noqa: E731
    events: list[dict] = [
        facts,
        *(
            {
                "event": "step", "step": step, "loss": at("loss", step, falling), "labels": 10, "count": 10,
                "gradient_norm": at("gradient_norm", step, lambda _: 1.0), "update": at("update", step, lambda _: 0.01),
                "order": at("order", step, lambda step: step),
            }
            for step in range(1, facts["steps"] + 1)
        ),
    ]  # fmt: skip
    for step in range(0, facts["steps"] + 1, 10):
        events.append({"event": "evaluation", "step": step, "held_out_loss": at("held_out", step, falling)})
        samples = [GOOD | {"answer": str(n)} | at("sample", step, lambda _: {}) for n in range(4)]
        events.append({
            "event": "probe", "step": step, "train_loss": at("trained", step, falling), "samples": samples,
            "general": [at("general", step, lambda _: 1.0)] * 8, "end_loss": at("end_loss", step, lambda step: 5 / (1 + step)),
        })  # fmt: skip
    return Record.read(events)


def names(made: Record) -> list[str]:
    return [finding.name for finding in diagnose(made).findings]


def test_the_healthy_record_raises_nothing_and_all_is_judged():
    assert diagnose(record()).findings == []
    assert diagnose(record()).not_judged == {}


CASES: list[tuple[str, dict[str, Any], int]] = [
    ("overfitting", {"held_out": lambda s: 3 - 0.05 * s if s <= 20 else 2 + 0.02 * (s - 20)}, 20),
    ("exploding_gradients", {"gradient_norm": lambda s: 1.0 if s < 30 else 100.0}, 30),
    ("exploding_gradients", {"gradient_norm": lambda s: None if s == 17 else 1.0}, 17),
    ("diverging", {"loss": lambda s: None if s >= 33 else 2.0}, 33),
    ("diverging", {"trained": lambda s: 3 + 0.05 * s, "update": lambda _: 1e-4, "held_out": lambda s: 3.0}, 0),
    ("learning_rate_too_high", {"trained": lambda s: 3.0 if s < 20 else 6.0}, 10),
    ("learning_rate_too_high", {"trained": lambda s: [3.0, 1.0, 2.5, 2.0, 1.0][s // 10]}, 10),
    ("learning_rate_too_low", {"trained": lambda s: 3.0, "held_out": lambda s: 3.0, "update": lambda _: 1e-5}, 0),
    ("not_converging", {"trained": lambda s: 3.0, "held_out": lambda s: 3.0}, 0),
    ("nothing_trained", {"gradient_norm": lambda _: 0.0}, 1),
    ("nothing_trained", {"facts": {"trained_tokens": 0}}, 0),
    ("end_token_never_learned", {"facts": {"end_token_lost": 60}}, 0),
    ("end_token_never_learned", {"end_loss": lambda s: 4.0 - 0.01 * s}, 0),
    ("end_token_never_learned", {"sample": lambda s: {"ended": s == 0, "tokens": 30 if s else 10}}, 0),
    ("repeated_data_order", {"order": lambda s: (s - 1) % 20}, 21),
    ("too_few_rows", {"facts": {"steps_per_epoch": 2}}, 0),
    ("forgetting", {"general": lambda s: 1.0 if s < 20 else 1.8}, 20),
    ("repetition", {"sample": lambda s: {"repetition": 0.8, "reference_repetition": 0.8}}, 10),
    ("collapse", {"sample": lambda s: {"repetition": 0.8 if s >= 20 else 0.0}}, 20),
    ("collapse", {"sample": lambda s: {"tokens": 1 if s else 10}}, 10),
    ("collapse", {"facts": {"objective": "dpo"}, "sample": lambda s: {"answer": "yes"} if s >= 30 else {}}, 30),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "since"), CASES)
def test_named_with_the_step_where_it_began(name, changes, since):
    (found,) = diagnose(record(**dict(changes))).findings
    assert (found.name, found.step) == (name, since)
    assert found.numbers
    assert found.seen
    assert "--" in found.remedy or "rows" in found.remedy


HEALTHY: list[dict[str, Any]] = [
    {"held_out": lambda s: 3 - 0.05 * s if s <= 20 else 2.0 + 0.004 * (s - 20)},  # wobbles by a twentieth
    {"gradient_norm": lambda s: 60.0 if s % 13 == 0 else 1.0},  # single spikes
    {"gradient_norm": lambda s: 0.01 + 0.05 * s},  # adapters that grow from zero
    {"trained": lambda s: [3.0, 1.0, 1.1, 0.9, 0.8][s // 10]},
    {"end_loss": lambda s: 0.001},
    {"facts": {"end_token_lost": 5}},
    {"general": lambda s: 1.0 if s != 20 else 2.5},  # shaken, and back again
    {"general": lambda s: 6.8 + 0.1 * s},  # knew nothing before
    {"sample": lambda s: {"repetition": 0.8 if s == 20 else 0.0}},
    {"sample": lambda s: {"answer": "yes"} if s >= 30 else {}},  # sft: not told apart yet
    {"order": lambda s: (s - 1) % 20, "facts": {"steps_per_epoch": 40}},
    {"order": lambda s: (s - 1) % 5, "facts": {"steps_per_epoch": 5, "steps": 10}},  # one order of 24: may be chance
]  # fmt: skip


@pytest.mark.parametrize("changes", HEALTHY)
def test_the_edge_is_healthy(changes):
    assert names(record(**changes)) == []


@pytest.mark.parametrize(
    ("first", "later", "since"),
    [
        (1.0, exploding_gradients.GROWTH - 0.01, None),
        (1.0, exploding_gradients.GROWTH, 30),
        (0.1, exploding_gradients.LENGTH - 0.01, None),  # a hundredfold, and still no length to clip
        (0.1, exploding_gradients.LENGTH, 30),
    ],
)
def test_gradients_explode_at_their_threshold_and_not_below(first, later, since):
    made = record(gradient_norm=lambda step: first if step < 30 else later)
    assert [(it.name, it.step) for it in diagnose(made).findings] == [("exploding_gradients", since)] * bool(since)


def test_gradients_that_are_long_in_fewer_steps_than_the_window_do_not_explode():
    """The median of five steps is told from three of them on."""
    for steps, found in ((2, []), (3, ["exploding_gradients"])):
        assert names(record(gradient_norm=lambda step, last=20 + steps: 100.0 if 20 < step <= last else 1.0)) == found


@pytest.mark.parametrize(
    ("lacking", "name"),
    [
        ({"facts": {"held_out_rows": 0}}, "overfitting"),
        ({"general": lambda _: 6.8}, "forgetting"),
        ({"facts": {"objective": "reward"}}, "collapse"),
        ({"facts": {"steps": 10}}, "learning_rate_too_low"),
        ({"facts": {"steps_per_epoch": None}}, "repeated_data_order"),
    ],
)
def test_what_cannot_be_judged_is_said(lacking, name):
    assert name in diagnose(record(**lacking)).not_judged


def test_ignored_diseases_are_neither_found_nor_lacking():
    made = record(held_out=CASES[0][1]["held_out"])
    assert diagnose(made, ["overfitting"]).findings == []


def test_a_run_without_events_is_judged_as_far_as_it_goes():
    empty = Record.read([])
    assert diagnose(empty).findings == []
    assert set(diagnose(empty).not_judged) == set(DISEASES)


def test_a_step_that_was_taken_again_counts_once():
    again = [{"event": "step", "step": step, "loss": loss} for step, loss in ((1, 5.0), (2, 4.0), (1, 3.0))]
    assert [step["loss"] for step in Record.read(again).steps] == [3.0, 4.0]


@pytest.mark.parametrize("disease", DISEASES.values())
def test_every_disease_has_the_shape_of_its_shelf(disease: ModuleType):
    assert disease.__doc__
    assert callable(disease.find)
    assert callable(disease.lacks)
    assert set(disease.FOLLOWS) <= set(DISEASES)
