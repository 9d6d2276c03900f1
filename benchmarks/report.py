"""What was measured as people read it: tables in docs/ and docs/zh/, and the race's chart in docs/race.svg.

python benchmarks/report.py     # from benchmarks/results; race.py, memory.py and duration.py do it when they have measured
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FOLDERS = {"en": ROOT / "docs", "zh": ROOT / "docs" / "zh"}
HEADS = {
    "en": ["", "tokens/s", "seconds", "peak, GiB", "held-out loss", "Tunesmith: tokens/s", "seconds", "peak"],
    "zh": ["", "词元/秒", "秒", "峰值 GiB", "留出损失", "Tunesmith：词元/秒", "秒", "峰值"],
}
JOBS = {
    "lora": {
        "en": "LoRA of all linear layers, rank 8, one epoch",
        "zh": "所有线性层的 LoRA，秩 8，一轮",
    },
    "target": {
        "en": "To the held-out loss that LLaMA-Factory's example reaches in three epochs",
        "zh": "达到 LLaMA-Factory 示例三轮后的留出损失",
    },
    "target_tuned": {
        "en": "To the held-out loss that the fastest rival reaches in three epochs at learning rate 1e-3",
        "zh": "达到最快的对手以学习率 1e-3 三轮后的留出损失",
    },
    "last4": {"en": "LoRA of the last four layers, three epochs", "zh": "最后四层的 LoRA，三轮"},
    "freeze4": {"en": "The last four layers whole, three epochs", "zh": "完整训练最后四层，三轮"},
    "freeze4_lora": {
        "en": "The last four layers, three epochs: Tunesmith with LoRA, the rival whole",
        "zh": "最后四层，三轮：Tunesmith 用 LoRA，对手完整训练",
    },
}
AGAIN = {"en": ", checkpointing", "zh": "，重算激活"}
SIZES = {"en": ("measured", "predicted"), "zh": ("实测", "预测")}
RUNS = {
    "en": {"freeze": "freeze, 4 layers", "freeze3": "freeze, 4 layers, three epochs"},
    "zh": {"freeze": "freeze，4 层", "freeze3": "freeze，4 层，三个 epoch"},
}
WHOLE = {
    "en": ["run", "steps, s: planned", "taken", "peak, GiB: planned", "measured"],
    "zh": ["运行", "各步，秒：预测", "实际", "峰值，GiB：预测", "实测"],
}
RACE = {"en": "Tunesmith beside LLaMA-Factory and TRL", "zh": "Tunesmith 与 LLaMA-Factory、TRL 对比"}
ROUNDS = {"en": "Rounds: {}, of revisions {}.", "zh": "轮数：{}，版本 {}。"}


def write() -> None:
    """Put the tables between their marks on the pages of both languages, and draw the chart."""
    for name, (page, made) in TABLES.items():
        found = results(name)
        for language, folder in FOLDERS.items():
            path = folder / page
            before, rest = path.read_text(encoding="utf-8").split(f"<!-- {name} -->\n")
            _, after = rest.split(f"<!-- {name} ends -->\n")
            text = f"{before}<!-- {name} -->\n{made(found, language)}<!-- {name} ends -->\n{after}"
            path.write_text(text, encoding="utf-8")
    draw(results("race"), ROOT / "docs" / "race.svg")


def write_beside(path: Path, found: dict[str, Any]) -> None:
    """Tables and chart of a race beside the file of its results, `path`."""
    for language, suffix in (("en", ".md"), ("zh", ".zh.md")):
        text = f"# {RACE[language]}\n\n![]({path.stem}.svg)\n\n{race(found, language)}"
        path.with_suffix(suffix).write_text(text, encoding="utf-8")
    draw(found, path.with_suffix(".svg"))


def results(name: str) -> Any:
    """What a benchmark wrote."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def race(found: dict[str, Any], language: str) -> str:
    """A table for every job that was run."""
    return "\n".join(job_table(job, found[job], language) for job in JOBS if job in found)


def memory(found: list[dict[str, Any]], language: str) -> str:
    """Peaks of a few steps, measured and planned, in MiB; a line for every configuration, its sizes side by side."""
    lines = dict[str, list[str]]()
    sizes = list(dict.fromkeys((row["rows"], row["tokens"]) for row in found))
    for row in found:
        name = f"{row['kind']} {row['precision']}{AGAIN[language] if row['checkpointing'] else ''}"
        measured, predicted = row["measured_bytes"] / 2**20, row["predicted_bytes"] / 2**20
        lines.setdefault(name, [name]).append(f"{measured:.0f} | {predicted:.0f} ({off(predicted / measured)})")
    words = SIZES[language]
    heads = ["", *(f"{rows} x {tokens} {words[0]} | {words[1]}" for rows, tokens in sizes)]
    return grid(heads, list(lines.values()), 1 + 2 * len(sizes))


def duration(found: dict[str, Any], language: str) -> str:
    """Whole runs: of every method the round in which the time was furthest from its plan."""
    lines = []
    for kind, rounds in found["rounds"].items():
        seen = max(rounds, key=lambda each: abs(each["seconds"] / each["planned_seconds"] - 1))
        time, peak = seen["seconds"] / seen["planned_seconds"], seen["bytes"] / seen["planned_bytes"]
        lines.append([
            RUNS[language].get(kind, kind), f"{seen['planned_seconds']:.0f}", f"{seen['seconds']:.0f} ({off(time)})",
            f"{seen['planned_bytes'] / 2**30:.2f}", f"{seen['bytes'] / 2**30:.2f} ({off(peak)})",
        ])  # fmt: skip
    return grid(WHOLE[language], lines, 5)


def off(ratio: float) -> str:
    """How far it is from one."""
    percent = round(100 * (ratio - 1))
    return f"{percent:+d} %" if percent else "0 %"


def grid(heads: list[str], lines: list[list[str]], columns: int) -> str:
    """A Markdown table."""
    marks = " | ".join(["---"] * columns)
    return "".join(f"| {line} |\n" for line in (" | ".join(heads), marks, *map(" | ".join, lines)))


def medians(job: dict[str, Any], name: str) -> dict[str, float]:
    """Of one contender over all rounds of a job."""
    rounds = [each["contenders"][name] for each in job["rounds"]]
    return {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}


def job_table(name: str, job: dict[str, Any], language: str) -> str:
    """One job: medians of every contender, and how Tunesmith stands beside each rival, a median of paired ratios."""
    lines = []
    for contender in ["tunesmith", *sorted(job["ratios"])]:
        own, beside = medians(job, contender), job["ratios"].get(contender)
        cells = [
            f"{own['tokens_per_second']:.0f}", f"{own['seconds']:.0f}", f"{own['peak_bytes'] / 2**30:.2f}", f"{own['held_out_loss']:.4f}",
            *([""] * 3 if beside is None else [
                f"{beside['tokens_per_second']:.2f}x", f"{beside['seconds']:.2f}x", f"{1 / beside['peak_bytes']:.2f}x",
            ]),
        ]  # fmt: skip
        lines.append([contender, *cells])
    revisions = ", ".join(dict.fromkeys(each["revision"] for each in job["rounds"]))
    rounds = ROUNDS[language].format(len(job["rounds"]), revisions)
    return f"### {JOBS[name][language]}\n\n{grid(HEADS[language], lines, 8)}\n{rounds}\n"


def draw(found: dict[str, Any], path: Path) -> None:
    """Bars of the whole time and of the peak, a row of panels for every job; dots are single rounds."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "race"  # the same numbers make the same file
    from matplotlib import pyplot as plt

    jobs = [name for name in JOBS if name in found]
    names = {job: [*sorted(found[job]["ratios"], reverse=True), "tunesmith"] for job in jobs}
    figure, grid = plt.subplots(
        len(jobs), 2, figsize=(10, 0.9 * len(jobs) + 0.3 * sum(map(len, names.values()))), layout="constrained", squeeze=False,
        height_ratios=[1 + len(names[job]) for job in jobs],
    )  # fmt: skip
    for job, panels in zip(jobs, grid, strict=True):
        for axes, key, unit in zip(panels, ("seconds", "peak_bytes"), (1, 2**30), strict=True):
            for place, name in enumerate(names[job]):
                seen = [each["contenders"][name][key] / unit for each in found[job]["rounds"]]
                axes.barh(place, statistics.median(seen), color="#1f5fa8" if name == "tunesmith" else "#b9bec6")
                axes.plot(seen, [place] * len(seen), "o", color="#333333", markersize=3)
            axes.set_yticks(
                range(len(names[job])), names[job] if key == "seconds" else [""] * len(names[job]), fontsize=8
            )
            axes.tick_params(axis="x", labelsize=7)
            axes.grid(axis="x", alpha=0.3)
            axes.set_axisbelow(True)
        panels[0].set_title(JOBS[job]["en"], fontsize=9, loc="left")
        panels[0].set_xlabel("seconds from start to saved weights", fontsize=8)
        panels[1].set_xlabel("peak memory, GiB", fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


TABLES: dict[str, tuple[str, Callable[[Any, str], str]]] = {
    "race": ("speed.md", race),
    "memory": ("plan.md", memory),
    "duration": ("plan.md", duration),
}
"""A file of results and the marks around its table: the page, and what makes the table."""


if __name__ == "__main__":
    write()
