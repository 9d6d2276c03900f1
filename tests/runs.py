"""What stands in a run folder, a run that is cut off, and what a fresh process makes of a run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tunesmith.core.files import sha256
from tunesmith.core.run import Run
from tunesmith.models.load import find, load_model
from tunesmith.training.loop import loss_series

FRESH = """
import json, sys, torch
from tunesmith.models.load import find, load_model
torch.set_num_threads(1)  # as the test: another number of threads rounds otherwise
with torch.no_grad():
    said = [load_model(find(run)).eval()(input_ids=torch.arange(40)[None]).logits for run in sys.argv[1:]]
print(json.dumps([logits.double().sum().item().hex() for logits in said]))
"""


def losses(folder: Path) -> list[float]:
    """Training losses by step; a step that a resumed run repeated counts once."""
    return [event["loss"] for event in loss_series(Run("train", folder)).values()]


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The events of one kind."""
    return [event for event in Run("train", folder).events() if event["event"] == kind]


@contextmanager
def cut_at(step: int, *, after: bool = False) -> Iterator[None]:
    """The training inside dies as it says this step, before the line is written or after."""

    def die(self: Run, kind: str, _event: Any = Run.event, **facts: Any) -> None:
        now = kind == "step" and facts["step"] == step
        if after or not now:
            _event(self, kind, **facts)
        if now:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "event", die)
        yield


def goes_on_after(step: int, train: Callable[..., Any], folder: Path, wishes: dict[str, Any]) -> Any:
    """A run that dies at a step ends, resumed, as the one that does not: losses, held-out loss and weights. Returns the latter."""
    whole = train(folder / "whole", **wishes)
    with cut_at(step):
        train(folder / "cut", **wishes)
    resumed = train(folder / "cut", resume=True, **wishes)
    assert losses(folder / "cut") == losses(folder / "whole")
    assert resumed.held_out_loss == whole.held_out_loss
    weights = [{path.name: sha256(path) for path in made.checkpoint.glob("*.safetensors")} for made in (whole, resumed)]
    assert weights[0] == weights[1] != {}
    return whole


def said(model: str) -> torch.Tensor:
    """The logits of a run, a package or a model folder."""
    with torch.no_grad():
        return load_model(find(model)).eval()(input_ids=torch.arange(40)[None]).logits


def sums_of(models: list[str]) -> list[str]:
    """The sums of their logits, exactly."""
    return [said(model).double().sum().item().hex() for model in models]


def fresh_sums_of(models: list[str]) -> list[str]:
    """The same, by a process that has trained nothing."""
    done = subprocess.run([sys.executable, "-c", FRESH, *models], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])
