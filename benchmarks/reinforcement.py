"""SFT -> reward model -> PPO and GRPO on the embedded model and real sets: does the reward rise on held-out prompts?

    python benchmarks/reinforcement.py [steps] [folder]

Writes benchmarks/results/reinforcement.json and docs/reinforcement.svg. Needs ../shared/data.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tunesmith
from tunesmith.core.run import Run
from tunesmith.training.loop import loss_series

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data" / "llamafactory"
STEADY = {"schedule": "constant", "warmup": 0}


def write_pairs(folder: Path) -> str:
    """Short rows of the set: the answer to a question is chosen, the answer to another question is rejected."""
    rows = json.loads((DATA / "alpaca_en_demo.json").read_text(encoding="utf-8"))
    short = [row for row in rows if 20 <= len(row["output"]) <= 300 and len(row["input"]) <= 200]
    pairs = [
        {
            "prompt": "\n".join(filter(None, (row["instruction"], row["input"]))),
            "chosen": row["output"],
            "rejected": short[place - 7]["output"],
        }
        for place, row in enumerate(short)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pairs.json"
    path.write_text(json.dumps(pairs, ensure_ascii=False), encoding="utf-8")
    return str(path)


def main(steps: int, folder: Path) -> None:
    pairs = write_pairs(folder)
    sft = tunesmith.train(
        model="embedded", dataset={"path": str(DATA / "alpaca_en_demo.json"), "max_lost": 1, "overlong": "drop"}, cutoff=160,
        objective={"kind": "sft"}, optimizer={"steps": 40, "learning_rate": 5e-4}, batch={"rows": 8},
        evaluation={"share": 0.1}, out=folder / "sft",
    )  # fmt: skip
    reward = tunesmith.train(
        model=str(folder / "sft"), dataset={"path": pairs, "max_lost": 1, "overlong": "drop"}, cutoff=160,
        objective={"kind": "reward", "centre": 0.01}, optimizer={"steps": 100, "learning_rate": 5e-4}, batch={"rows": 4},
        evaluation={"share": 0.15, "every_steps": 50}, out=folder / "reward",
    )  # fmt: skip
    found = {
        "sft": {"before": sft.base_held_out_loss, "after": sft.held_out_loss},
        "reward": {
            "before": reward.base_held_out_loss,
            "after": reward.held_out_loss,
            "events": evaluations(folder / "reward"),
        },
    }
    common = {
        "model": str(folder / "sft"), "dataset": str(folder / "sft" / "dataset"), "batch": {"rows": 8},
        "evaluation": {"every_steps": 10}, "save": {"every_steps": 20},
    }  # fmt: skip
    jobs = {
        "ppo": ({"kind": "ppo", "kl": 0.05}, 1e-4),
        "grpo": ({"kind": "grpo", "answers": 4, "kl": 0.04}, 2e-4),
    }
    for name, (objective, rate) in jobs.items():
        wish = {**objective, "reward": str(folder / "reward"), "answer_tokens": 32}
        rows = {"rows": 8} if name == "ppo" else {"rows": 4}
        made = tunesmith.train(
            **{**common, "batch": rows}, objective=wish, optimizer={"steps": steps, "learning_rate": rate, **STEADY},
            out=folder / name,
        )  # fmt: skip
        series = loss_series(Run("train", folder / name))
        found[name] = {
            "before": made.base_held_out_reward, "after": made.held_out_reward, "seconds": made.seconds,
            "evaluations": evaluations(folder / name),
            "steps": [{key: event.get(key) for key in ("step", "reward", "kl", "answer_tokens", "ended")} for event in series.values()],
        }  # fmt: skip
        (ROOT / "benchmarks" / "results" / "reinforcement.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(found)


def evaluations(folder: Path) -> list[dict]:
    return [
        {key: value for key, value in event.items() if key == "step" or key.startswith("held_out")}
        for event in Run("train", folder).events()
        if event["event"] == "evaluation"
    ]


def draw(found: dict) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, colour in (("ppo", "#1f5fa8"), ("grpo", "#c8541b")):
        seen = found[name]["evaluations"]
        for axis, key in zip(axes, ("held_out_reward", "held_out_kl"), strict=True):
            axis.plot([it["step"] for it in seen], [it[key] for it in seen], "o-", color=colour, label=name)
    axes[0].set(xlabel="optimizer step", ylabel="mean reward, held-out prompts")
    axes[1].set(xlabel="optimizer step", ylabel="nats of divergence an answer")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(ROOT / "docs" / "reinforcement.svg")


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else 30, Path(sys.argv[2] if len(sys.argv) > 2 else "runs/reinforcement")
    )
