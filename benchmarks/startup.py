"""From the start of the process to the first step: a run on new rows, and runs on the same rows after it.

    PYTHONPATH=. python benchmarks/startup.py [ROUNDS]

Trains the embedded model by LoRA on 48 rows of its own making, with an empty cache at first. Phases are read off the events
that a run writes with their times. Writes benchmarks/results/startup.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from race import machine

from tunesmith.core.run import Run

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "startup.json"
ROWS = 48
OPTIONS = ("--model", "embedded", "--cutoff", "512", "--optimizer.steps", "2")
IMPORTS = "import peft, transformers.models.llama.modeling_llama"
"""What of other people's code a LoRA run needs before its weights can be read."""


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {**os.environ, "TUNESMITH_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
        write_rows(folder / "rows.jsonl")
        call(environment, "-c", "from tunesmith.models.embedded import embedded_folder; embedded_folder()")
        runs = [measure(folder, environment, number) for number in range(rounds + 1)]
    found = {
        "machine": machine(),
        "first": runs[0],
        "later": runs[1:],
        "fastest_later": min(runs[1:], key=lambda run: run["first_step_begins"] - run["model_load"]),
    }
    RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for run in runs:
        print({name: value for name, value in run.items() if name != "losses"})
    assert len({tuple(run["losses"]) for run in runs}) == 1, "a later run has other losses"


def write_rows(path: Path) -> None:
    """Rows of 20 to 400 words or so."""
    rows = [
        {"instruction": f"Count from {n} upwards, in words.", "output": " ".join(f"{n + k} lamps," for k in range(5 + 3 * n))}
        for n in range(ROWS)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def call(environment: dict[str, str], *words: str) -> float:
    """Run Python. Returns the seconds it took."""
    started = time.time()
    subprocess.run([sys.executable, *words], env=environment, check=True, capture_output=True, cwd=ROOT)
    return time.time() - started


def measure(folder: Path, environment: dict[str, str], number: int) -> dict[str, Any]:
    """The phases of a run, in seconds; `first_step_begins` is counted from the start of the process."""
    out = folder / f"run{number}"
    load, imports = os.getloadavg()[0], call(environment, "-c", IMPORTS)
    started = time.time()
    command = ("-m", "tunesmith", "train", str(folder / "rows.jsonl"), *OPTIONS, "--dataset.max_lost", "1")
    whole = call(environment, *command, "--out", str(out))
    events = list(Run("train", out).events())
    at = {event["event"]: event["time"] - started for event in reversed(events)}  # the first of each kind
    steps = [event for event in events if event["event"] == "step"]
    model_load = next(event["seconds"] for event in events if event["event"] == "loaded")
    return {
        "process_and_config": round(at["started"], 2),
        "rows_ready": round(at["prepared"] - at["started"], 2),
        "plan_and_lock": round(at["loaded"] - model_load - at["prepared"], 2),
        "model_load": model_load,
        "untrained_model_scored": round(at["evaluation"] - at["loaded"], 2),
        "untrained_model_probed": round(at["probe"] - at["evaluation"], 2),
        "first_step_begins": round(at["probe"], 2),
        "first_step_begins_less_model_load": round(at["probe"] - model_load, 2),
        "steps": round(steps[-1]["time"] - started - at["probe"], 2),
        "after_the_last_step": round(whole - (steps[-1]["time"] - started), 2),
        "whole": round(whole, 2),
        "imports_of_libraries_alone": round(imports, 2),
        "load_average": round(load, 2),
        "losses": [event["loss"] for event in steps],
    }


if __name__ == "__main__":
    main()
