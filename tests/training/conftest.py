"""Runs of the real train verb on a two-layer model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunesmith import verbs
from tunesmith.core.config import load


@pytest.fixture(autouse=True, scope="module")
def _one_thread(one_thread):
    """Every test here."""


@pytest.fixture(scope="session")
def train(tiny_model: Path, rows_file: Path):
    """`train(out, **dotted options)` -> the Training artifact; fp32, small batches."""

    def call(out: Path, *, resume: bool = False, **wishes: Any):
        defaults = {"precision": "fp32", "batch.rows": 4, "optimizer.learning_rate": 0.01, "optimizer.epochs": 2}
        overrides = [*defaults.items(), *((key.replace("__", "."), value) for key, value in wishes.items())]
        document = {"model": str(tiny_model), "dataset": {"path": [str(rows_file)]}}
        config = load(verbs.config_class("train"), document, overrides)
        return verbs.perform("train", config, out, resume=resume, quiet=True)[0]

    return call
