"""Runs that were made sick on purpose are named, healthy ones raise nothing: real training, seconds each."""

from __future__ import annotations

import pytest

from school import HEALTHY, PLAIN, SICK, build, write_blank_model, write_schooled_model
from tunesmith.core.run import Run
from tunesmith.training.diagnosis import diagnose
from tunesmith.training.diseases import DISEASES
from tunesmith.training.record import Record


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """`models(template)` -> the schooled model; for the plain template a blank one, which is enough there."""
    made = {}

    def give(template):
        if template not in made:
            write = write_blank_model if template == PLAIN else write_schooled_model
            made[template] = write(tmp_path_factory.mktemp("school"), template)
        return made[template]

    return give


def names(folder) -> set[str]:
    return {finding.name for finding in diagnose(Record.read(Run("train", folder).events())).findings}


def said_live(folder) -> set[str]:
    return {event["name"] for event in Run("train", folder).events() if event["event"] == "finding"}


CASES = [
    pytest.param(disease, method, marks=() if method == "full" else pytest.mark.slow)
    for disease, sick in SICK.items()
    for method in sick.methods
]


@pytest.mark.parametrize(("disease", "method"), CASES)
def test_a_sick_run_is_named(disease, method, models, tmp_path, monkeypatch):
    run = build(SICK[disease], models, tmp_path / "run", method, monkeypatch)
    assert disease in names(run)
    assert disease in said_live(run)
    assert names(run) <= {disease} | SICK[disease].also


def test_every_disease_has_a_sick_run():
    assert set(SICK) == set(DISEASES)


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_raises_nothing(name, models, tmp_path, monkeypatch):
    method, healthy = HEALTHY[name]
    run = build(healthy, models, tmp_path / "run", method, monkeypatch)
    assert names(run) == set()
    assert said_live(run) == set()
