"""Held-out loss after a training as users type it, at several learning rates, ranks and batch sizes, on real rows.

    python benchmarks/rates.py [--jobs "full en,lora en,lora zh"] [--epochs 1]

256 rows of alpaca_en_demo or alpaca_zh_demo train, 64 are held out; what the model unlearns is seen on the doctor's general
set. Writes benchmarks/results/rates.json, and goes on there. Needs ../shared/data; seconds mean something on an idle machine only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from race import DATA, HELD_OUT, machine, quiet

RESULTS = Path(__file__).parent / "results" / "rates.json"
SETS = {"en": DATA, "zh": DATA.with_name("alpaca_zh_demo.json")}
ROWS = 256
METHODS: dict[str, dict[str, Any]] = {
    "full": {"kind": "full"},
    "freeze": {"kind": "freeze", "layers": 4},
    "lora": {"kind": "lora"},
    "lora4": {"kind": "lora", "last_layers": 4},
    **{f"rank{rank}": {"kind": "lora", "rank": rank, "alpha": 2 * rank} for rank in (4, 64)},
}
RATES = {"full": (3e-5, 1e-4, 3e-4, 1e-3), "freeze": (3e-5, 1e-4, 3e-4, 1e-3), "lora": (2e-4, 5e-4, 1e-3, 2e-3, 4e-3)}
OTHER_RATES = (5e-4, 1e-3, 2e-3)
"""Of other ranks and batches: does the best rate move with them?"""


def trials(job: str) -> list[dict[str, Any]]:
    """The trainings of a job: a method, a set and, where it is not 8, the rows of a batch ("lora en 16")."""
    method, language, *rest = job.split()
    batch = int(rest[0]) if rest else 8
    rates = OTHER_RATES if rest else RATES.get(method, OTHER_RATES)
    return [{"method": method, "set": language, "rate": rate, "batch": batch} for rate in rates]


def perform(trial: dict[str, Any], epochs: float) -> dict[str, Any]:
    """One training in a process of its own: held-out loss before and after, the general set's, seconds of its steps."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        rows = json.loads(SETS[trial["set"]].read_text(encoding="utf-8"))[: ROWS + HELD_OUT]
        (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
        config = {
            "model": "embedded", "dataset": {"path": [str(folder / "rows.json")], "max_lost": 1}, "cutoff": 512,
            "method": METHODS[trial["method"]], "batch": {"rows": trial["batch"]}, "precision": "bf16",
            "optimizer": {"epochs": epochs, "learning_rate": trial["rate"]}, "diagnosis": {"samples": 0},
            "evaluation": {"share": HELD_OUT / len(rows), "every_steps": 1000, "keep_best": False},
        }  # fmt: skip
        (folder / "train.yaml").write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "tunesmith", "train", str(folder / "train.yaml"), "--out", str(folder / "run")]
        subprocess.run(command, check=True, env=quiet(), stdout=subprocess.DEVNULL)
        events = [json.loads(line) for line in (folder / "run" / "events.jsonl").read_text().splitlines()]
    held_out = [event["held_out_loss"] for event in events if event["event"] == "evaluation"]
    general = [fmean(event["general"]) for event in events if event.get("general")]
    return {
        **trial, "epochs": epochs, "before": held_out[0], "held_out_loss": held_out[-1],
        "general": general[-1] - general[0], "seconds": events[-1]["seconds"],
    }  # fmt: skip


def main() -> None:
    wish = argparse.ArgumentParser()
    wish.add_argument(
        "--jobs", default="lora en,full en,freeze en,lora zh,rank64 en,lora en 16,lora en 4,rank4 en,full zh"
    )
    wish.add_argument("--epochs", type=float, default=1)
    wish = wish.parse_args()
    found = json.loads(RESULTS.read_text())["trials"] if RESULTS.is_file() else []
    known = [{key: trial[key] for key in ("method", "set", "rate", "batch", "epochs")} for trial in found]
    for job in wish.jobs.split(","):
        for trial in trials(job):
            if {**trial, "epochs": wish.epochs} in known:
                continue
            found.append(perform(trial, wish.epochs))
            print(found[-1], flush=True)
            RESULTS.write_text(json.dumps({"machine": machine(), "rows": ROWS, "trials": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
