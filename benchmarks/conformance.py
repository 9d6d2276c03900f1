"""Every method x {sft, dpo, kto, reward} on a two-layer model: 20 steps, held-out loss, resume, a fresh process.

    PYTHONPATH=. python benchmarks/conformance.py

Writes benchmarks/results/conformance.json and the tables docs/conformance.md and docs/zh/conformance.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import tunesmith
from tests.tiny import write_tiny_model
from tests.training.test_objectives import JOBS, PAIRS
from tunesmith.core.run import Run
from tunesmith.models.load import find, load_model
from tunesmith.models.scoring import load_reward_model
from tunesmith.training.loop import loss_series

ROOT = Path(__file__).parent.parent
METHODS: dict[str, tuple[dict[str, Any], float]] = {
    "full": ({}, 2e-3),
    "freeze": ({"layers": 1}, 5e-3),
    "lora": ({}, 0.01),
    "qlora": ({}, 0.01),
    "p_tuning": ({"tokens": 8, "hidden": 16}, 0.03),
    "prompt": ({"tokens": 8}, 0.03),
    "prefix": ({"tokens": 4}, 0.03),
    "bottleneck": ({}, 0.03),
}
"""By kind: its options, and the learning rate that a random two-layer model wants."""
ANSWERS = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in PAIRS]
OBJECTIVES = {"sft": (ANSWERS, {"kind": "sft"}), **{name: JOBS[name] for name in ("dpo", "kto", "reward")}}
STEPS, HALF = 20, 10
FRESH = """
import json, sys
sys.path[:0] = {path!r}
from benchmarks.conformance import said
print(json.dumps([said(run) for run in sys.argv[1:]]))
"""


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    write_tiny_model(folder / "model")
    found = [conform(folder, method, objective) for method in METHODS for objective in OBJECTIVES]
    runs = [row["run"] for row in found]
    code = FRESH.format(path=[str(ROOT)])
    done = subprocess.run([sys.executable, "-c", code, *runs], capture_output=True, text=True, check=True)
    for row, fresh in zip(found, json.loads(done.stdout.splitlines()[-1]), strict=True):
        row["fresh"] = fresh == said(row.pop("run"))
    (ROOT / "benchmarks" / "results" / "conformance.json").write_text(json.dumps(found, indent=1) + "\n")
    for page, words in WORDS.items():
        (ROOT / page).write_text(table(found, words), encoding="utf-8")


def conform(folder: Path, method: str, objective: str) -> dict[str, Any]:
    """Train 20 steps; train 20 steps with the checkpoint of the tenth as the last one left, and go on."""
    options, rate = METHODS[method]
    rows, wish = OBJECTIVES[objective]
    run = folder / f"{method}-{objective}"
    data = folder / f"{objective}.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))

    def train(*, resume: bool = False) -> Any:
        return tunesmith.train(
            model=str(folder / "model"), dataset=str(data), cutoff=64, method={"kind": method, **options}, objective=wish,
            optimizer={"steps": STEPS, "learning_rate": rate}, batch={"rows": 8}, evaluation={"keep_best": False},
            save={"every_steps": HALF, "keep": 9}, precision="fp32", out=run, resume=resume,
        )  # fmt: skip

    made = train()
    losses = [event["loss"] for event in loss_series(Run("train", run)).values()]
    made.checkpoint.rename(folder / f"{run.name}-done")
    resumed = train(resume=True)
    again = [event["loss"] for event in loss_series(Run("train", run)).values()]
    return {
        "method": method, "objective": objective, "before": made.base_held_out_loss, "after": made.held_out_loss,
        "trained": made.trainable_parameters, "resumed": losses == again and resumed.held_out_loss == made.held_out_loss,
        "run": str(run),
    }  # fmt: skip


def said(run: str) -> str:
    """The sum of the logits on one input, exactly."""
    found = find(run)
    load = load_reward_model if run.endswith("-reward") else load_model
    with torch.no_grad():
        logits = load(found).eval()(input_ids=torch.arange(40)[None]).logits
    return logits.double().sum().item().hex()


WORDS = {
    "docs/conformance.md": (
        "# Every method under every objective", "Written by `PYTHONPATH=. python benchmarks/conformance.py`: a random two-layer model, "
        "20 steps of 8 rows, fp32. Held-out loss before and after; whether a run cut off after step 10 goes on with the same "
        "losses and ends with the same held-out loss, bit for bit; whether a fresh process that loads the checkpoint gives "
        "the same logits, bit for bit.", ("method", "objective", "before", "after", "resumes", "reloads"), ("yes", "**no**"),
    ),
    "docs/zh/conformance.md": (
        "# 每种方法配每个目标", "由 `PYTHONPATH=. python benchmarks/conformance.py` 写成：随机的两层模型，20 步，每步 8 行，fp32。列出训练前后的留出损失；"
        "在第 10 步后中断的训练是否逐位得到相同的损失并以相同的留出损失结束；新进程加载检查点后 logits 是否逐位相同。",
        ("方法", "目标", "训练前", "训练后", "续训一致", "重新加载一致"), ("是", "**否**"),
    ),
}  # fmt: skip


def table(found: list[dict[str, Any]], words: Any) -> str:
    title, text, heads, (yes, no) = words
    lines = [title, "", text, "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in found:
        cells = [
            f"`{row['method']}`", f"`{row['objective']}`", f"{row['before']:.4f}", f"{row['after']:.4f}",
            yes if row["resumed"] else no, yes if row["fresh"] else no,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
