"""What `plan` says of memory and time against what `train` then takes, both as a user types them, on the embedded model.

    python benchmarks/duration.py [--rounds 2] [--rows 96] [--runs full,freeze,freeze3,lora,qlora]

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
LAST = {"kind": "freeze", "layers": 4}
RUNS: dict[str, tuple[dict[str, Any], int]] = {
    "full": ({"kind": "full"}, 1), "freeze": (LAST, 1), "freeze3": (LAST, 3), "lora": ({"kind": "lora"}, 1), "qlora": ({"kind": "qlora"}, 1),
}  # fmt: skip
"""(method, as it is by default, freeze with four layers; epochs)"""


def perform(verb: str, config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One verb in a process of its own, as from the command line, with the folder's own cache; its result."""
    path = folder / f"{verb}.yaml"  # a .json would be a model's
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "tunesmith", verb, str(path), "--out", str(folder / verb), "--json"]
    own = {"TUNESMITH_CACHE": str(folder / "cache")}  # nothing is left from an earlier run
    done = subprocess.run(
        command, check=False, env=quiet() | own, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"{verb} ended with status {done.returncode}: {done.stderr[-3000:]}")
    return json.loads((folder / verb / "result.json").read_text())


def compare(name: str, rows: int) -> dict[str, float]:
    """Predicted and measured: seconds of the steps and of filling the cache before them, peak bytes of the whole run."""
    method, epochs = RUNS[name]
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        data = folder / "rows.json"
        data.write_text(json.dumps(json.loads(DATA.read_text(encoding="utf-8"))[:rows]))
        shared = {
            "model": "embedded", "dataset": {"path": [str(data)], "max_lost": 1}, "cutoff": 512, "method": method,
        }  # fmt: skip
        planned = perform("plan", shared, folder)
        made = perform("train", {**shared, "optimizer": {"epochs": epochs}, "evaluation": {"share": 0}}, folder)
        events = [json.loads(line) for line in (folder / "train" / "events.jsonl").read_text().splitlines()]
    tokens = sum(event["tokens"] for event in events if event["event"] == "step")
    filling = sum(event["seconds"] for event in events if event["event"] == "cached")
    return {
        "planned_seconds": planned["seconds_per_epoch"] + (epochs - 1) * planned["seconds_per_further_epoch"],
        "seconds": filling + tokens / made["tokens_per_second"],
        "planned_bytes": made["predicted_memory_bytes"], "bytes": made["peak_memory_bytes"],
    }  # fmt: skip


def main() -> None:
    wish = argparse.ArgumentParser()
    wish.add_argument("--rounds", type=int, default=2)
    wish.add_argument("--rows", type=int, default=96)
    wish.add_argument("--runs", default=",".join(RUNS))
    wish = wish.parse_args()
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(wish.rounds):
        for name in wish.runs.split(","):
            seen = compare(name, wish.rows)
            found.setdefault(name, []).append(seen)
            time, memory = seen["seconds"] / seen["planned_seconds"], seen["bytes"] / seen["planned_bytes"]
            print(f"{name:<8}{seen['planned_seconds']:>7.1f} s planned, {time:.0%} taken", end="; ")
            print(f"{seen['planned_bytes'] / 2**30:>6.2f} GiB planned, {memory:.0%} taken", flush=True)
    RESULTS.write_text(json.dumps({"machine": machine(), "rows": wish.rows, "rounds": found}, indent=1) + "\n")
    write()


if __name__ == "__main__":
    main()
