"""The same rows, the same trained parameters, the same held-out rows: Tunesmith, LLaMA-Factory and TRL in turns.

    make benchmark [RACE="--rounds 1 --jobs lora --rows 64"]    # builds LLaMA-Factory's environment in .rivals/ before
    python benchmarks/race.py [--rounds 5] [--rows 256] [--jobs lora,target,...] [--data FILE] [--out FILE]

Every contender is a process of its own, from start to its saved weights; one after the other, in another order each round.
Held-out losses are computed by one and the same code from the saved weights. Writes runs/race/race.json, beside it a page
and a chart, and goes on there: rounds that the file holds count, each with its revision and compared only within itself.
With --out benchmarks/results/race.json these are docs/speed.md and its chart. Needs rows (--data: a JSON list of
instruction, input and output) and an idle machine; a round of all jobs takes two hours on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml
from report import RESULTS, write, write_beside

ROOT = Path(__file__).resolve().parents[1]
RIVALS = ROOT / ".rivals"
PUBLISHED = RESULTS / "race.json"
DATA = ROOT.parent / "shared" / "data" / "llamafactory" / "alpaca_en_demo.json"
HELD_OUT, CUTOFF, RANK, ALPHA = 64, 512, 8, 16


@dataclass(frozen=True)
class Contender:
    """How one program does one job."""

    name: str
    command: list[str]
    made: Callable[[], Path]
    """Where its adapter, or its whole model, lies once it has ended."""
    seconds: Callable[[str], float]
    """From what it printed: seconds of its training loop alone."""
    epochs: float


@dataclass(frozen=True)
class Course:
    """What all contenders of a race share."""

    folder: Path
    model: Path
    rows: int
    epochs: int
    rate: float
    last_layers: int | None = None
    is_whole: bool = False
    """Those layers' own weights are trained, and no adapters."""

    @property
    def layers(self) -> list[int] | None:
        """Numbers of the layers that are trained; None for all."""
        count = json.loads((self.model / "config.json").read_text())["num_hidden_layers"]
        return None if self.last_layers is None else list(range(count - self.last_layers, count))


def read_rows(data: Path, count: int) -> list[dict[str, str]]:
    """Rows for training and for the held-out loss. Ends with one line where there are too few, or where they are others."""
    layout = "Give --data, a JSON list of instruction, input and output"
    if not data.is_file():
        raise SystemExit(f"{data}: no such file. {layout}")
    try:
        rows = json.loads(data.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SystemExit(f"{data}: not JSON ({error}). {layout}") from None
    if not isinstance(rows, list):
        raise SystemExit(f"{data}: not a list. Got {type(rows).__name__}. {layout}")
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not {"instruction", "input", "output"} <= set(row):
            raise SystemExit(f"{data}: row {number} has other fields. Got {str(row)[:60]}. {layout}")
    if len(rows) < count + HELD_OUT:
        raise SystemExit(f"{data}: {len(rows)} rows, of which {HELD_OUT} are held out. Got --rows {count}. Give fewer")
    return rows[: count + HELD_OUT]


def write_rows(folder: Path, rows: list[dict[str, str]]) -> None:
    """The set's first rows for training and the last for the held-out loss, in the layouts of all programs."""
    count = len(rows) - HELD_OUT
    for name, part in (("train", rows[:count]), ("held_out", rows[count:])):
        (folder / f"{name}.json").write_text(json.dumps(part, ensure_ascii=False), encoding="utf-8")
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(as_turns(row)) for row in part), encoding="utf-8")
    (folder / "dataset_info.json").write_text(json.dumps({"race": {"file_name": "train.json"}}))


def as_turns(row: dict[str, str]) -> dict[str, Any]:
    """An alpaca row as TRL reads it."""
    return {
        "prompt": [{"role": "user", "content": "\n".join(filter(None, (row["instruction"], row["input"])))}],
        "completion": [{"role": "assistant", "content": row["output"]}],
    }


def tunesmith(course: Course, name: str, *, epochs: float | None = None, rate: float | None = None) -> Contender:
    out, epochs = course.folder / name, epochs or course.epochs
    method: dict[str, Any] = {"kind": "lora", "rank": RANK, "alpha": ALPHA}
    if course.last_layers:
        method["last_layers"] = course.last_layers
    if course.is_whole:
        method = {"kind": "freeze", "layers": course.last_layers}
    config = {
        "model": str(course.model), "dataset": {"path": [str(course.folder / "train.json")], "max_lost": 1}, "cutoff": CUTOFF, "method": method,
        "optimizer": {"epochs": epochs, "learning_rate": rate or course.rate, "warmup": 0.1}, "precision": "bf16",
        "evaluation": {"share": 0}, "seed": 42,
    }  # fmt: skip
    path = course.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))

    def seconds(_: str) -> float:
        result = json.loads((out / "result.json").read_text())
        return tokens_of(course) * epochs / result["tokens_per_second"]

    return Contender(
        name, [sys.executable, "-m", "tunesmith", "train", str(path), "--out", str(out), "--json"],
        lambda: Path(json.loads((out / "result.json").read_text())["checkpoint"]), seconds, epochs,
    )  # fmt: skip


def llamafactory(course: Course, name: str, **wishes: Any) -> Contender:
    out = course.folder / name
    config = {
        "model_name_or_path": str(course.model), "template": "smollm2", "stage": "sft", "do_train": True,
        **_llamafactory_method(course),
        "dataset_dir": str(course.folder), "dataset": "race", "cutoff_len": CUTOFF, "output_dir": str(out),
        "overwrite_output_dir": True, "overwrite_cache": True, "report_to": "none", "logging_steps": 10,
        "save_strategy": "no", "learning_rate": course.rate, "num_train_epochs": float(course.epochs),
        "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "bf16": True, "use_cpu": True,
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, **wishes,
    }  # fmt: skip
    path = course.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [str(RIVALS / "llamafactory" / "bin" / "llamafactory-cli"), "train", str(path)]
    seconds = lambda _: json.loads((out / "train_results.json").read_text())["train_runtime"]  # noqa: E731
    return Contender(name, command, lambda: out, seconds, course.epochs)


def _llamafactory_method(course: Course) -> dict[str, Any]:
    if course.is_whole:
        return {"finetuning_type": "freeze", "freeze_trainable_layers": course.last_layers}
    assert course.layers is None, "its LoRA names modules, and no layers"
    return {"finetuning_type": "lora", "lora_rank": RANK, "lora_alpha": ALPHA, "lora_target": "all"}


def trl(course: Course, name: str, *, dtype: str = "float32", **options: Any) -> Contender:
    out = course.folder / name
    wish = {
        "rows": str(course.folder / "train.jsonl"), "model": str(course.model), "out": str(out), "rank": RANK, "alpha": ALPHA,
        "epochs": course.epochs, "rate": course.rate, "layers": course.layers, "is_whole": course.is_whole, "dtype": dtype, "options": options,
    }  # fmt: skip
    path = course.folder / f"{name}.json"
    path.write_text(json.dumps(wish))
    command = [sys.executable, str(ROOT / "benchmarks" / "rivals" / "trl_sft.py"), str(path)]
    seconds = lambda said: json.loads(said.strip().splitlines()[-1])["seconds"]  # noqa: E731
    return Contender(name, command, lambda: out, seconds, course.epochs)


LLAMAFACTORY_DEFAULTS = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
"""What it does where nothing is said of the batch; its examples have one row eight times."""
LLAMAFACTORY_TUNED = {"disable_gradient_checkpointing": True, "flash_attn": "sdpa"}
TRL_TUNED = {"gradient_checkpointing": False, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
"""One row eight times: for LLaMA-Factory it beat eight rows at once (144 against 238 tokens/s in one round of 48 rows)."""

JOBS: dict[str, dict[str, Any]] = {
    "lora": {"epochs": 1, "rate": 1e-4},
    "target": {"epochs": 3, "rate": 1e-4},
    "target_tuned": {"epochs": 3, "rate": 1e-3},
    "last4": {"epochs": 3, "rate": 1e-3, "last_layers": 4},
    "freeze4": {"epochs": 3, "rate": 1e-4, "last_layers": 4, "is_whole": True},
    "freeze4_lora": {"epochs": 3, "rate": 1e-4, "last_layers": 4, "is_whole": True},
}
TARGETS = {"target": {"epochs": 0.25, "rate": 3e-3}, "target_tuned": {"epochs": 1.75, "rate": 1e-3}}
"""Ours where a rival's held-out loss is to be reached: enough to end below it; the table says whether it does."""


def contenders(job: str, folder: Path, model: Path, rows: int) -> tuple[Course, list[Contender]]:
    """Who runs in a job: each rival as its examples or defaults have it, and with the settings that are fastest here."""
    course = Course(folder, model, rows, **JOBS[job])
    tuned = lambda: llamafactory(course, "llamafactory tuned", **LLAMAFACTORY_TUNED)  # noqa: E731
    if job == "freeze4_lora":
        return course, [tunesmith(replace(course, is_whole=False), "tunesmith", rate=JOBS["last4"]["rate"]), tuned()]
    ours = tunesmith(course, "tunesmith", **TARGETS.get(job, {}))
    if job == "target":
        return course, [ours, llamafactory(course, "llamafactory example")]
    if job == "target_tuned":
        return course, [ours, tuned()]
    if course.is_whole:
        return course, [ours, llamafactory(course, "llamafactory example"), tuned()]
    theirs = [trl(course, "trl defaults"), trl(course, "trl tuned", dtype="bfloat16", **TRL_TUNED)]
    if course.layers is None:
        theirs += [
            llamafactory(course, "llamafactory defaults", **LLAMAFACTORY_DEFAULTS),
            llamafactory(course, "llamafactory example"),
            tuned(),
        ]
    return course, [ours, *theirs]


def tokens_of(course: Course) -> int:
    """Tokens of the training rows, padding not counted."""
    return json.loads((course.folder / "facts.json").read_text())["tokens"]


def run(contender: Contender, course: Course) -> dict[str, float]:
    """Run it once: seconds from start to end, seconds of training, peak memory of the process, held-out loss."""
    printed = course.folder / f"{contender.name}.log"
    started = time.monotonic()
    with printed.open("w") as out:
        own = {"TUNESMITH_CACHE": str(course.folder / "cache" / contender.name)}  # nothing is left from an earlier run
        child = subprocess.Popen(contender.command, stdout=out, stderr=subprocess.STDOUT, env=quiet() | own)
        _, status, used = os.wait4(child.pid, 0)
    seconds = time.monotonic() - started
    said = printed.read_text(encoding="utf-8", errors="replace")
    if status:
        raise SystemExit(f"{contender.name} ended with status {status}:\n{said[-3000:]}")
    training = contender.seconds(said)
    return {
        "seconds": seconds, "training_seconds": training, "peak_bytes": used.ru_maxrss << 10,
        "tokens_per_second": tokens_of(course) * contender.epochs / training,
        "held_out_loss": apart(held_out_loss, contender.made(), course),
    }  # fmt: skip


def apart(function: Callable[..., Any], *given: Any) -> Any:
    """Call it in a process of its own: a child's peak memory is at least what its parent held when it was started."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *given).result()


def machine() -> str:
    """Where numbers come from."""
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"


def quiet() -> dict[str, str]:
    offline = {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_DISABLED": "true",
        "DISABLE_VERSION_CHECK": "1",
    }
    return {**os.environ, **offline, "PYTHONPATH": str(ROOT)}


def held_out_loss(made: Path, course: Course) -> float:
    """Mean loss of the answers' tokens in the held-out rows under the base with an adapter, or a whole model, fp32."""
    from tunesmith.data.batch import BatchConfig, collate, in_order
    from tunesmith.data.dataset import Rows
    from tunesmith.models.load import Found, find, load_model
    from tunesmith.training.held_out import held_out_scores
    from tunesmith.training.objectives import Sft

    rows = Rows(Path(json.loads((course.folder / "facts.json").read_text())["held_out"]), "train")
    has_adapter = (made / "adapter_config.json").is_file()
    model = load_model(Found("race", course.model, made) if has_adapter else find(str(made)))
    ready = lambda numbers: collate(rows, numbers, 0)  # noqa: E731
    return held_out_scores(Sft(), model, in_order(rows.lengths, BatchConfig()), ready)["held_out_loss"]


def prepare(course: Course) -> None:
    """Count the tokens, and make the held-out rows into token arrays, once for all contenders."""
    import tunesmith as program

    made = {
        name: program.prepare(
            model="embedded", dataset={"path": str(course.folder / f"{name}.json"), "max_lost": 1}, cutoff=CUTOFF, share=0,
            out=course.folder / "prepared" / name,
        )
        for name in ("train", "held_out")
    }  # fmt: skip
    facts = {"tokens": made["train"].tokens, "held_out": str(made["held_out"].dataset)}
    (course.folder / "facts.json").write_text(json.dumps(facts))


def one_round(job: str, number: int, rows: list[dict[str, str]]) -> dict[str, dict[str, float]]:
    """All contenders of a job, one after the other, in another order each round."""
    from tunesmith.models.load import find

    with tempfile.TemporaryDirectory() as work:
        folder, found = Path(work), {}
        write_rows(folder, rows)
        course, all_of_them = contenders(job, folder, find("embedded").base, len(rows) - HELD_OUT)
        apart(prepare, course)
        random.Random(number).shuffle(all_of_them)
        for contender in all_of_them:
            found[contender.name] = run(contender, course)
            seen = {name: round(value, 3) for name, value in found[contender.name].items()}
            print(job, number, contender.name, seen, flush=True)
    return found


def ratios(rounds: list[dict[str, dict[str, float]]], rival: str) -> dict[str, float]:
    """Medians over the rounds of rival / tunesmith, for tokens a second the other way round: above 1 is ours."""
    pairs = [(each[rival], each["tunesmith"]) for each in rounds]
    over = {name: statistics.median(a[name] / b[name] for a, b in pairs) for name in pairs[0][0]}
    return {**over, "tokens_per_second": 1 / over["tokens_per_second"]}


def main() -> None:
    wish = argparse.ArgumentParser()
    wish.add_argument("--rounds", type=int, default=5)
    wish.add_argument("--rows", type=int, default=256)
    wish.add_argument("--jobs", default=",".join(JOBS))
    wish.add_argument("--data", type=Path, default=DATA)
    wish.add_argument("--out", type=Path, default=ROOT / "runs" / "race" / "race.json")
    wish = wish.parse_args()
    for name in ("rounds", "rows"):
        if getattr(wish, name) < 1:
            raise SystemExit(f"--{name}: none. Got {getattr(wish, name)}. Give 1 or more")
    jobs, of = wish.jobs.split(","), {"data": wish.data.name, "rows": wish.rows}
    if unknown := set(jobs) - set(JOBS):
        raise SystemExit(f"--jobs: unknown. Got {', '.join(sorted(unknown))}. Choose from {', '.join(JOBS)}")
    found, rows = json.loads(wish.out.read_text()) if wish.out.is_file() else {}, read_rows(wish.data, wish.rows)
    revision = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True).strip()
    for job in jobs:
        rounds = found.get(job, {}).get("rounds", [])
        held = {name: found[job][name] for name in of} if rounds else of
        if held != of:
            raise SystemExit(f"{wish.out}: holds rounds of {job} with {held}. Got {of}. Give another --out")
        if len(rounds) >= wish.rounds:
            print(f"{wish.out}: has {len(rounds)} rounds of {job} already", flush=True)
        for number in range(len(rounds), wish.rounds):
            rounds.append({"revision": revision, "contenders": one_round(job, number, rows)})
            names = [name for name in rounds[0]["contenders"] if name != "tunesmith"]
            beside = {name: ratios([each["contenders"] for each in rounds], name) for name in names}
            found[job] = {**of, "ratios": beside, "rounds": rounds}
            wish.out.parent.mkdir(parents=True, exist_ok=True)
            wish.out.write_text(json.dumps(found, indent=1) + "\n")
            if wish.out.resolve() == PUBLISHED:
                write()
            else:
                write_beside(wish.out, found)
    page = ROOT / "docs" / "speed.md" if wish.out.resolve() == PUBLISHED else wish.out.with_suffix(".md")
    print(f"{page}: the tables", flush=True)


if __name__ == "__main__":
    main()
