"""Every choice on every shelf has one file, named as the user types it, and the same shape as its neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

import tunesmith
from tunesmith.core.config import Config
from tunesmith.data.formats import FORMATS, FormatName
from tunesmith.engines import EngineConfig
from tunesmith.evaluation.metrics import Metric
from tunesmith.models.methods import Method
from tunesmith.training.objectives import Objective

ROOT = Path(tunesmith.__file__).parent


def choices(union: object) -> dict[str, type[Config]]:
    """kind -> Config of a shelf's union (or of its only choice)."""
    members = get_args(get_args(union)[0]) if get_args(union) else (union,)
    return {get_args(member.model_fields["kind"].annotation)[0]: member for member in members}


def files_on(shelf: str) -> set[str]:
    return {path.stem for path in (ROOT / shelf).glob("*.py")} - {"__init__"}


SHELVES = {
    "models/methods": (Method, {"footprint", "load", "put", "rate_factor", "save", "restore"}, set()),
    "training/objectives": (Objective, {"count", "loss"}, set()),
    "engines": (EngineConfig, {"open"}, {"contract", "batch", "pieces"}),
    "evaluation/metrics": (Metric, {"lacks_reference"}, set()),
}


@pytest.mark.parametrize("shelf", SHELVES)
def test_a_file_for_each_choice_and_a_choice_for_each_file(shelf):
    union, _, machinery = SHELVES[shelf]
    assert files_on(shelf) - machinery == set(choices(union))
    for kind, choice in choices(union).items():
        assert choice.__module__ == f"tunesmith.{shelf.replace('/', '.')}.{kind}"


@pytest.mark.parametrize(("shelf", "kind"), [(shelf, kind) for shelf in SHELVES for kind in choices(SHELVES[shelf][0])])
def test_every_choice_has_the_shape_of_its_shelf(shelf, kind):
    choice = choices(SHELVES[shelf][0])[kind]
    assert issubclass(choice, Config)
    assert choice.__doc__
    for name in SHELVES[shelf][1]:
        assert callable(getattr(choice, name)), name


def test_formats():
    assert files_on("data/formats") == set(FORMATS) == set(get_args(FormatName)) - {"auto"}
    for layout in FORMATS.values():
        assert set(layout.REQUIRED) <= set(layout.COLUMNS)
        assert layout.matches(set(layout.COLUMNS))
        assert not layout.matches({"something", "else"})
        assert callable(layout.read)
