"""Run prepared run folders one after the other in the processes that torchrun has started; says what held the model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tunesmith.core.config import load
from tunesmith.core.run import Run
from tunesmith.training import loop
from tunesmith.training.distributed import SilentRun, joined
from tunesmith.verbs import train

held = {}
spread_over = loop.spread_over


def seen(model, wish, team):
    made = spread_over(model, wish, team)
    parts = {type(part).__name__ for part in next(iter(made.bare.parameters())).__class__.__mro__}
    held["held"] = [type(made.model).__name__, type(made.optimizer).__name__, sorted(parts & {"DTensor", "Parameter"})]
    shard = next(iter(made.bare.parameters()))
    held["here"] = getattr(shard, "_local_tensor", shard).numel()
    return made


loop.spread_over = seen
with joined() as team:
    for folder in map(Path, sys.argv[1:]):
        orders = json.loads((folder / "processes" / "orders.json").read_text())
        config = load(train.TrainConfig, orders["config"])
        run = (Run if team.is_first else SilentRun)("train", folder, quiet=True)
        run.replay_of = None
        made = train.work(config, run, orders, team)
        if made:
            (folder / "held.json").write_text(json.dumps({**held, "held_out_loss": made.held_out_loss}))
        team.wait()
