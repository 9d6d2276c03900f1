"""What `plan` says of memory and time against what `train` then takes, both as a user types them, on the embedded model.

    python benchmarks/duration.py [--rounds 2] [--rows 96] [--methods full,freeze,lora,qlora]

Writes benchmarks/results/duration.json and the table of docs/plan.md. Needs ../shared/data and an idle machine: a plan made
while something else runs foretells a run beside that something.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from race import DATA, machine, quiet
from report import write

RESULTS = Path(__file__).parent / "results" / "duration.json"
METHODS: dict[str, dict[str, Any]] = {"full": {}, "freeze": {"layers": 4}, "lora": {}, "qlora": {}}
"""As they are by default, freeze with four layers."""


def perform(verb: str, config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One verb in a process of its own, as from the command line; its result."""
    path = folder / f"{verb}.yaml"  # a .json would be a model's
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "tunesmith", verb, str(path), "--out", str(folder / verb), "--json"]
    done = subprocess.run(
        command, check=False, env=quiet(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"{verb} ended with status {done.returncode}: {done.stderr[-3000:]}")
    return json.loads((folder / verb / "result.json").read_text())


def compare(kind: str, rows: int) -> dict[str, float]:
    """Predicted and measured: seconds of the steps of one epoch, peak bytes of the whole run."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        data = folder / "rows.json"
        data.write_text(json.dumps(json.loads(DATA.read_text(encoding="utf-8"))[:rows]))
        shared = {
            "model": "embedded", "dataset": {"path": [str(data)], "max_lost": 1}, "cutoff": 512, "method": {"kind": kind, **METHODS[kind]},
        }  # fmt: skip
        planned = perform("plan", shared, folder)
        made = perform("train", {**shared, "optimizer": {"epochs": 1}, "evaluation": {"share": 0}}, folder)
        events = [json.loads(line) for line in (folder / "train" / "events.jsonl").read_text().splitlines()]
    tokens = sum(event["tokens"] for event in events if event["event"] == "step")
    return {
        "planned_seconds": planned["seconds_per_epoch"], "seconds": tokens / made["tokens_per_second"],
        "planned_bytes": made["predicted_memory_bytes"], "bytes": made["peak_memory_bytes"],
    }  # fmt: skip


def main() -> None:
    wish = argparse.ArgumentParser()
    wish.add_argument("--rounds", type=int, default=2)
    wish.add_argument("--rows", type=int, default=96)
    wish.add_argument("--methods", default=",".join(METHODS))
    wish = wish.parse_args()
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(wish.rounds):
        for kind in wish.methods.split(","):
            seen = compare(kind, wish.rows)
            found.setdefault(kind, []).append(seen)
            time, memory = seen["seconds"] / seen["planned_seconds"], seen["bytes"] / seen["planned_bytes"]
            print(f"{kind:<8}{seen['planned_seconds']:>7.1f} s planned, {time:.0%} taken", end="; ")
            print(f"{seen['planned_bytes'] / 2**30:>6.2f} GiB planned, {memory:.0%} taken", flush=True)
    RESULTS.write_text(json.dumps({"machine": machine(), "rows": wish.rows, "rounds": found}, indent=1) + "\n")
    write()


if __name__ == "__main__":
    main()
