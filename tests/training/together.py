"""Run prepared run folders one after the other in the processes that torchrun has started; notes what held the model."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tunesmith.core.config import load
from tunesmith.core.run import Run
from tunesmith.training import loop
from tunesmith.training.distributed import SilentRun, joined
from tunesmith.verbs import train

held: dict[str, object] = {}
real = loop.spread_over


def noting(model, wish, team):
    made = real(model, wish, team)
    piece = max(made.bare.parameters(), key=lambda parameter: getattr(parameter, "ds_numel", parameter.numel()))
    held["by"] = [type(made.model).__name__, type(made.optimizer).__name__]
    held["here"] = getattr(piece, "_local_tensor", piece).numel()
    held["of"] = getattr(piece, "ds_numel", piece.numel())
    flags = [("offload_optimizer", "cpu_offload"), ("offload_param",)]  # stage 3's names; cpu_offload is stage 2's
    held["offload"] = [any(bool(getattr(made.optimizer, name, False)) for name in names) for names in flags]
    return made


loop.spread_over = noting
with joined() as team:
    for folder in map(Path, sys.argv[1:]):
        orders = json.loads((folder / "processes" / "orders.json").read_text())
        config = load(train.TrainConfig, orders["config"])
        run = (Run if team.is_first else SilentRun)("train", folder, quiet=True)
        if train.work(config, run, orders, team):
            (folder / "held.json").write_text(json.dumps(held))
        team.wait()
os._exit(0)  # as tunesmith.worker ends: gloo's threads must not meet a Python that is being torn down
