"""Training of a model of eight billion weights on one GPU: how much of the GPU's arithmetic a LoRA run uses, beside TRL;
the last layers with the activation cache; what QLoRA holds.

    python benchmarks/gpu.py --rows FILE [--jobs NAMES] [--out FILE]      # writes benchmarks/results/gpu.json
    python benchmarks/gpu.py --rows FILE --shape tiny --count 64 --out FILE      # a rehearsal without a GPU

Weights are random, of Llama 3 8B's shape under the embedded model's tokenizer: neither time nor memory knows the
difference. FILE has alpaca rows (../shared/data/llamafactory/alpaca_en_demo.json). Needs 20 GB of disk. Not run on a GPU yet.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from duration import perform
from race import ROOT, apart, as_turns, machine, quiet

RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
SHAPES = {
    "8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 8, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 49152, "max_position_embeddings": 8192,
    },
}  # fmt: skip
TOKENS = 4096
"""That go through the model at a time."""
ROWS = 80
"""Of a step, four passes or so of alpaca rows."""
STEPS, EPOCHS, RANK = 24, 4, 16
LAST = 4
LONG, LONG_STEPS = 2048, 4
"""Tokens of the one row of a QLoRA step."""
PEAK_FLOPS = 989e12
"""Dense bf16 products a second of an H100 or H200 (SXM) by its datasheet, in operations."""


def make_model(folder: Path, shape: str) -> None:
    """Random weights in bf16 with the embedded model's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tunesmith.models.load import find

    base = find("embedded").base
    folder.mkdir()
    for path in base.iterdir():
        if path.suffix in {".json", ".txt", ".jinja"} and path.name not in {"config.json", "generation_config.json"}:
            shutil.copy(path, folder)
    ends = {name: json.loads((base / "config.json").read_text())[name] for name in ("bos_token_id", "eos_token_id")}
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape], **ends, tie_word_embeddings=False, dtype=torch.bfloat16))
    model.to(torch.bfloat16).save_pretrained(folder)


def write_rows(source: Path, folder: Path, count: int | None) -> None:
    """The rows as they are, as TRL reads them, and some that are at least LONG tokens long."""
    rows = json.loads(source.read_text(encoding="utf-8"))[:count]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(as_turns(row)) for row in rows), encoding="utf-8")
    text = "\n".join(row["output"] for row in rows)
    letters = 8 * LONG
    long = [{"instruction": f"Part {n}.", "output": text[n * letters : (n + 1) * letters]} for n in range(8)]
    (folder / "long.json").write_text(json.dumps(long), encoding="utf-8")


def ours(folder: Path, name: str, method: dict[str, Any], **wishes: Any) -> dict[str, Any]:
    """A run as a user has it, examinations left out: its result."""
    place = folder / name
    place.mkdir()
    config = {
        "model": str(folder / "model"), "dataset": {"path": [str(folder / "rows.json")], "max_lost": 1}, "cutoff": TOKENS,
        "method": method, "batch": {"rows": ROWS, "tokens": TOKENS}, "precision": "bf16", "evaluation": {"share": 0},
        "optimizer": {"steps": STEPS, "learning_rate": 1e-4}, "diagnosis": {"samples": 0, "general": 0}, **wishes,
    }  # fmt: skip
    return perform("train", config, place)


def trl(folder: Path, name: str, tokens: int, **options: Any) -> dict[str, float]:
    """TRL on the same rows, packed, one epoch: seconds of its training, tokens a second, the peak on a GPU."""
    wish = {
        "rows": str(folder / "rows.jsonl"), "model": str(folder / "model"), "out": str(folder / name), "rank": RANK,
        "alpha": 2 * RANK, "epochs": 1, "rate": 1e-4, "layers": None, "is_whole": False, "dtype": "bfloat16",
        "options": {
            "max_length": TOKENS, "packing": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4,
            "use_cpu": not apart(has_gpu), **options,
        },
    }  # fmt: skip
    path = folder / f"{name}.json"
    path.write_text(json.dumps(wish))
    script = str(ROOT / "benchmarks" / "rivals" / "trl_sft.py")
    done = subprocess.run([sys.executable, script, str(path)], env=quiet(), check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} ended with status {done.returncode}: {done.stderr[-3000:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return {**found, "tokens_per_second": tokens / found["seconds"]}


def prepare(folder: Path) -> Any:
    """The rows as token arrays."""
    import tunesmith as program
    from tunesmith.data.dataset import Rows

    made = program.prepare(
        model=str(folder / "model"), dataset={"path": str(folder / "rows.json"), "max_lost": 1}, cutoff=TOKENS, share=0,
        out=folder / "prepared",
    )  # fmt: skip
    return Rows(made.dataset, "train")


def flops_of_a_token(model: Path, rows: Any) -> float:
    """Operations that training LoRA in all linear layers needs for a token of these rows, on the average.

    Products with frozen weights forward and backward to their input, 4 a weight; with adapters 6; the head where a label
    is; causal attention, its products forward once and backward twice over half a square (PaLM, arXiv 2204.02311, B).
    """
    from tunesmith.models.shape import read_shape

    shape = read_shape(model)
    linears = (*shape.attention, *shape.mlp)
    weights = shape.layers * sum(linear.inputs * linear.outputs for linear in linears)
    adapters = shape.layers * sum(RANK * (linear.inputs + linear.outputs) for linear in linears)
    head = shape.head.parameters * sum(rows.labels) / rows.tokens
    squares = sum(length**2 for length in rows.lengths) / rows.tokens / 2
    attention = shape.layers * 3 * 4 * shape.heads * shape.head_size * squares
    return 4 * (weights + head) + 6 * adapters + attention


def has_gpu() -> bool:
    """Whether torch has a GPU to train on."""
    import torch

    return torch.cuda.is_available()


def where() -> dict[str, Any]:
    """The machine, and what a product of 8192 x 8192 numbers in bf16 reaches on its GPU."""
    import torch
    import transformers

    found: dict[str, Any] = {"machine": machine(), "torch": torch.__version__, "transformers": transformers.__version__}
    if has_gpu():
        a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        for _ in range(3):
            a @ b
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(10):
            a @ b
        torch.cuda.synchronize()
        found["gpu"] = torch.cuda.get_device_name()
        found["product_flops_per_second"] = 10 * 2 * 8192**3 / (time.perf_counter() - started)
    return found


def jobs(folder: Path, tokens: int) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is measured, by name."""
    lora = {"kind": "lora", "rank": RANK, "alpha": 2 * RANK}
    epochs = {"optimizer": {"epochs": EPOCHS, "learning_rate": 1e-4}}
    long = {"path": [str(folder / "long.json")], "max_lost": 1}
    return {
        "lora": lambda: ours(folder, "lora", lora),
        "trl packed": lambda: trl(folder, "trl packed", tokens, gradient_checkpointing=False),
        "trl packed, checkpointing": lambda: trl(folder, "trl packed, checkpointing", tokens),
        "last layers": lambda: ours(
            folder, "last", {**lora, "last_layers": LAST}, memory={"activation_cache": "on"}, **epochs
        ),
        "qlora": lambda: ours(
            folder, "qlora", {**lora, "kind": "qlora"}, dataset=long, cutoff=LONG, batch={"rows": 1},
            optimizer={"steps": LONG_STEPS, "learning_rate": 1e-4},
        ),
    }  # fmt: skip


def main() -> None:
    wish = argparse.ArgumentParser()
    wish.add_argument("--rows", type=Path, required=True)
    wish.add_argument("--shape", choices=SHAPES, default="8b")
    wish.add_argument("--count", type=int, help="rows; all without it")
    wish.add_argument("--jobs", default="", help="names with commas; all without it")
    wish.add_argument("--out", type=Path)
    wish = wish.parse_args()
    out = wish.out or (RESULTS if wish.shape == "8b" else None)
    if out is None:
        raise SystemExit("--shape tiny is a rehearsal: give --out")
    found = {"shape": wish.shape, **apart(where)}  # this process holds nothing of the GPU
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        write_rows(wish.rows, folder, wish.count)
        apart(make_model, folder / "model", wish.shape)
        rows = prepare(folder)
        found["flops_of_a_token"] = flops_of_a_token(folder / "model", rows)
        for name, job in jobs(folder, rows.tokens).items():
            if wish.jobs and name not in wish.jobs.split(","):
                continue
            started = time.monotonic()
            seen = {**job(), "process_seconds": time.monotonic() - started}
            if name not in {"last layers", "qlora"}:  # which need fewer operations, or have other rows
                seen["share_of_peak"] = found["flops_of_a_token"] * seen["tokens_per_second"] / PEAK_FLOPS
            found[name] = seen
            print(name, json.dumps(seen), flush=True)
            out.write_text(json.dumps(found, indent=1) + "\n")  # what is measured stays if the next one fails


if __name__ == "__main__":
    main()
