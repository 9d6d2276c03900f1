"""What a checkpoint holds comes back to the bit: optimizer state of any type, and every generator."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from tunesmith.core.run import Run
from tunesmith.training import checkpoint
from tunesmith.training.checkpoint import Position

POSITION = Position(3, best_loss=0.1 + 0.2, best_step=2, bad_evaluations=1, judged_step=3, held_out_loss=1 / 3)


def draws() -> list[float]:
    normal = [random.gauss(0, 1), float(np.random.standard_normal()), float(torch.randn(()))]
    return [*normal, random.random(), float(np.random.rand()), float(torch.rand(()))]


class Odd(torch.optim.Optimizer):
    """State of every kind that optimizers keep: floats, bytes, integers as tensors; numbers; a table that is shared."""

    def __init__(self, parameters) -> None:
        super().__init__(parameters, {"lr": 0.1})

    def step(self, closure=None):
        table = torch.linspace(0, 1, 256)
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter] = {
                "codes": torch.arange(5, dtype=torch.uint8), "table": table, "step": 7, "rate": 1 / 3,
                "count": torch.tensor(2**40), "moment": torch.rand(5, 2).T,
            }  # fmt: skip


def test_everything_comes_back(tmp_path):
    parameters = [torch.nn.Parameter(torch.zeros(5)) for _ in range(2)]
    optimizer = Odd(parameters)
    optimizer.step()
    checkpoint.seed_everything(5)
    draws()  # the second half of a normal pair waits in the generators of Python and numpy
    checkpoint.save(tmp_path / "one", POSITION, optimizer, weights=lambda folder: None, facts={})
    wanted, before = draws(), optimizer.state_dict()["state"]
    checkpoint.seed_everything(6)
    fresh = Odd(parameters)
    assert checkpoint.restore(tmp_path / "one", fresh) == POSITION
    assert draws() == wanted
    after = fresh.state_dict()["state"]
    assert after.keys() == before.keys()
    for number, entry in before.items():
        for name, value in entry.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(after[number][name], value)
            else:
                assert after[number][name] == value
                assert type(after[number][name]) is type(value)


def test_a_removal_that_was_cut_off_leaves_no_torn_checkpoint(tmp_path, monkeypatch):
    optimizer = Odd([torch.nn.Parameter(torch.zeros(5))])
    for step in (1, 2, 3):
        checkpoint.save(
            checkpoint.folder_of(tmp_path, step), Position(step), optimizer, weights=lambda folder: None, facts={}
        )

    def cut(path, **_):
        (path / "state" / "position.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("shutil.rmtree", cut)
        checkpoint.remove_old(tmp_path, 2, None)
    whole = checkpoint.complete_checkpoints(Run("train", tmp_path))
    assert [path.name for path in whole] == ["checkpoint-000002", "checkpoint-000003"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [path.name for path in whole]
