"""Predicted against measured peak memory: a few steps on the embedded model, each configuration in processes of its own.

python benchmarks/memory.py                  # all configurations, writes benchmarks/results/memory.json and the table of docs/plan.md
python benchmarks/memory.py lora fp32        # only those whose name has all these words; the others keep their rows
python benchmarks/memory.py --again          # measures nothing, plans anew
"""

from __future__ import annotations

import itertools
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from report import write

STEPS = 4
RUNS = 3
"""Of a configuration; what the allocator keeps differs from run to run."""
RESULTS = Path(__file__).parent / "results" / "memory.json"
SIZES = ((8, 64, 0), (4, 256, 0), (16, 60, 23))


def configurations() -> list[dict[str, Any]]:
    """Every configuration of the table; `labelled` is a share of the tokens, as in instruction data."""
    made = []
    for kind, precision, checkpointing, (rows, tokens, shared) in itertools.product(
        ("lora", "full", "freeze", "qlora"), ("fp32", "bf16"), (False, True), SIZES
    ):
        made.append({
            "name": f"{kind} {precision} {'checkpointing ' if checkpointing else ''}{rows}x{tokens}{f' shared {shared}' if shared else ''}",
            "kind": kind, "precision": precision, "checkpointing": checkpointing, "rows": rows, "tokens": tokens,
            "shared": shared, "labelled_share": 0.5, "padded": True,
        })  # fmt: skip
    return made


def measure(wish: dict[str, Any]) -> dict[str, Any]:
    """Train a few steps as the loop does (accelerate's autocast, labelled logits, fused AdamW); returns the peaks in bytes."""
    import torch
    from accelerate import Accelerator

    from tunesmith.core.hardware import peak_memory_bytes, reset_peak_memory
    from tunesmith.models.head import label_losses
    from tunesmith.models.lean import make_lean
    from tunesmith.models.load import find
    from tunesmith.models.recompute import recompute_activations
    from tunesmith.training.optimizer import OptimizerConfig, make_optimizer

    method = method_of(wish)
    torch.set_num_threads(1)  # spinning threads on a busy machine cost more than they give
    found = find("embedded")
    reset_peak_memory()
    model = method.load(found, wish["precision"])
    make_lean(model)
    model = method.put(model)
    make_lean(model)
    if wish["checkpointing"]:
        recompute_activations(model)
    loaded = peak_memory_bytes()
    accelerator = Accelerator(mixed_precision="bf16" if wish["precision"] == "bf16" else "no")
    model, optimizer = accelerator.prepare(
        model, make_optimizer(model, OptimizerConfig(learning_rate=1e-5), method.rate_factor)
    )
    model.train()
    reset_peak_memory()
    for _ in range(STEPS):
        loss = label_losses(model, batch(wish)).mean()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {"loading_bytes": loaded, "measured_bytes": peak_memory_bytes(), "libc": " ".join(platform.libc_ver())}


def measure_apart(wish: dict[str, Any]) -> dict[str, Any]:
    """`measure` in RUNS processes side by side; the peaks of all, and their median."""
    command = [sys.executable, __file__, "--one", json.dumps(wish)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(command, **pipes) for _ in range(RUNS)]
    said = [child.communicate() for child in children]
    if any(child.returncode for child in children):
        sys.exit(next(error for child, (_, error) in zip(children, said, strict=True) if child.returncode))
    found = [json.loads(out.splitlines()[-1]) for out, _ in said]
    middle = {name: int(statistics.median(one[name] for one in found)) for name in ("loading_bytes", "measured_bytes")}
    return {**found[0], **middle, "runs_bytes": sorted(one["measured_bytes"] for one in found)}


def method_of(wish: dict[str, Any]) -> Any:
    """The method with its default options."""
    from pydantic import TypeAdapter

    from tunesmith.models.methods import Method

    return TypeAdapter(Method).validate_python({"kind": wish["kind"]})


def batch(wish: dict[str, Any]) -> dict[str, Any]:
    """Random ids; the last part of each row is labelled; one row is a token short, so that there is padding."""
    import torch

    shape = (wish["rows"], wish["tokens"])
    ids = torch.randint(5, 40000, shape)
    if wish["shared"]:
        ids[:, : wish["shared"] + 1] = ids[0, : wish["shared"] + 1].clone()
        ids[:, wish["shared"] + 1] = torch.arange(len(ids))
    mask, labels = torch.ones_like(ids), ids.clone()
    labels[:, : round(wish["tokens"] * (1 - wish["labelled_share"]))] = -100
    if wish["padded"]:
        mask[0, -1], labels[0, -1] = 0, -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def predict(wish: dict[str, Any]) -> dict[str, Any]:
    """The plan of a configuration."""
    from dataclasses import asdict

    from tunesmith.core.hardware import probe
    from tunesmith.models.load import find
    from tunesmith.models.shape import read_shape
    from tunesmith.planning.memory import Wish, plan_memory

    asked = Wish(
        model="embedded", method=method_of(wish), precision=wish["precision"],
        rows=wish["rows"], tokens=wish["tokens"], shared=wish["shared"], checkpointing=wish["checkpointing"],
        labelled=round(wish["rows"] * wish["tokens"] * wish["labelled_share"]),
    )  # fmt: skip
    return asdict(plan_memory(read_shape(find("embedded").base), asked, probe()))


def compare(wish: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """One row of the results: the configuration, what was measured, what the plan says, and how far it is off."""
    plan = predict(wish)
    parts = {key: value for key, value in plan.items() if key.endswith("_bytes") and key != "available_bytes"}
    error = round(plan["total_bytes"] / measured["measured_bytes"] - 1, 4)
    return {**wish, **measured, "predicted_bytes": plan["total_bytes"], "error": error, "parts": parts}


def main(words: list[str]) -> None:
    """Measure every configuration and write the table."""
    if words[:1] == ["--one"]:
        print(json.dumps(measure(json.loads(words[1]))))
        return
    named = [wish for wish in configurations() if all(word in wish["name"].split() for word in words)]
    if words != ["--again"] and not named:
        sys.exit(
            f"configurations: none has all these words. Got {' '.join(words)}. Give words of one, as lora fp32 8x64"
        )
    known = {row["name"]: row for row in json.loads(RESULTS.read_text(encoding="utf-8"))}
    for wish in configurations():
        if words == ["--again"]:
            kept = ("loading_bytes", "measured_bytes", "libc", "runs_bytes")
            measured = {key: known[wish["name"]][key] for key in kept}
        elif wish in named:
            measured = measure_apart(wish)
        else:
            continue
        row = known[wish["name"]] = compare(wish, measured)
        peak, said = row["measured_bytes"] / 2**20, row["predicted_bytes"] / 2**20
        print(f"{row['name']:<32} measured {peak:6.0f} MiB  predicted {said:6.0f} MiB  {row['error']:+.1%}", flush=True)
        rows = [known[wish["name"]] for wish in configurations() if wish["name"] in known]
        RESULTS.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    write()


if __name__ == "__main__":
    main(sys.argv[1:])
