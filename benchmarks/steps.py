"""Real training steps in one setting beside others: speed and peak memory (decisions 005 and 008).

python benchmarks/steps.py [rounds] [setting ...]   # alternating, each run in its own process; writes benchmarks/results/steps.json

With settings named only those are measured, and take the place of what was known of them. Needs ../shared/data and an idle machine.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "steps.json"
DATA = HERE.parents[1] / "shared" / "data" / "llamafactory" / "alpaca_en_demo.json"
KETTLE = HERE.parent / "examples" / "kettle" / "en"
LEAN = {
    "method": {"kind": "lora", "rank": 8, "alpha": 16},
    "lean": True,
    "tokens": 1536,
    "length_step": 8,
    "kernels": None,
    "compiled": False,
    "fused": False,
    "data": "alpaca",
    "once": True,
}
LONG = {**LEAN, "data": "kettle"}
FREEZE = {**LEAN, "method": {"kind": "freeze", "layers": 4}}
SETTINGS: dict[str, dict[str, Any]] = {
    "as train does it": LEAN,
    "modules as transformers and peft have them": {**LEAN, "lean": False},
    "whole batches": {**LEAN, "tokens": None},
    "whole batches, modules as they are": {**LEAN, "tokens": None, "lean": False},
    "passes of 2048": {**LEAN, "tokens": 2048},
    "passes of 512": {**LEAN, "tokens": 512},
    "passes of 1024": {**LEAN, "tokens": 1024},
    "sequences of every length": {**LEAN, "length_step": 1},
    "sequences in steps of 64": {**LEAN, "length_step": 64},
    "attention by the fused kernel": {**LEAN, "fused": True},
    "code of 16 shapes kept": {**LEAN, "kernels": 16},
    "code of 1024 shapes kept": {**LEAN, "kernels": 1024},
    "layers compiled": {**LEAN, "compiled": True},
    "layers compiled, modules as they are": {**LEAN, "compiled": True, "lean": False},
    "freeze": FREEZE,
    "freeze, attention by the fused kernel": {**FREEZE, "fused": True},
    "freeze, code of 1024 shapes kept": {**FREEZE, "kernels": 1024},
    "a long system message": LONG,
    "a long system message, counted in every row": {**LONG, "once": False},
}
PAGE, CHARACTERS = "15-returns.md", 1400
ROWS, BATCH, CUTOFF, STEPS, WARM = 256, 8, 512, 16, 2


def measure(setting: dict[str, Any], folder: Path) -> dict[str, Any]:
    """LoRA of all linear layers, rank 8, or the last four layers, bf16, as the loop does it; tokens a second count no padding, and
    `seconds_before` are those of the first steps, which do not count in them."""
    from tunesmith.core import hardware

    hardware.KERNELS = setting["kernels"] or hardware.KERNELS
    hardware.set_environment()  # before torch is loaded, as the command line does it
    import torch
    from accelerate import Accelerator
    from pydantic import TypeAdapter

    from tunesmith.data.batch import BatchConfig, collate, order_steps
    from tunesmith.data.dataset import Rows
    from tunesmith.models import attention, joined
    from tunesmith.models.head import label_losses
    from tunesmith.models.lean import make_lean
    from tunesmith.models.load import find, load_model
    from tunesmith.models.methods import Method
    from tunesmith.training.optimizer import OptimizerConfig, make_optimizer

    joined.LENGTH_STEP = setting["length_step"]
    if setting["fused"]:
        attention.RowAttention.apply = lambda *given: attention.by_kernel(*given, 0.0)
    torch.manual_seed(0)
    rows, method = Rows(folder, "train"), TypeAdapter[Method](Method).validate_python(setting["method"])
    accelerator = Accelerator(mixed_precision="bf16")
    model = method.put(load_model(find("embedded"), "bf16"))
    if setting["lean"]:
        make_lean(model)
    if setting["compiled"]:
        for module in model.modules():
            if type(module).__name__.endswith("DecoderLayer"):
                module.compile(dynamic=True)
    wish = OptimizerConfig(learning_rate=1e-3)
    model, optimizer = accelerator.prepare(model, make_optimizer(model, wish, method.rate_factor))
    model.train()
    tokens, seconds, before, loss = 0, 0.0, 0.0, 0.0
    batch, shared = BatchConfig(rows=BATCH, tokens=setting["tokens"]), rows.shared if setting["once"] else 0
    for number, step in enumerate(order_steps(rows.lengths, batch, 0, 0, shared)[:STEPS]):
        started = time.perf_counter()
        passes = [collate(rows, numbers, 2) for numbers in step]
        labels = sum(int((tensors["labels"] != -100).sum()) for tensors in passes)
        values = list[torch.Tensor]()
        for tensors in passes:
            values.append(label_losses(model, tensors).sum() / labels)
            accelerator.backward(values[-1])
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss = sum(map(float, values))
        if number >= WARM:
            tokens += sum(int(tensors["attention_mask"].sum()) for tensors in passes)
            seconds += time.perf_counter() - started
        else:
            before += time.perf_counter() - started
    return {
        "tokens_per_second": round(tokens / seconds, 1),
        "seconds_before": round(before, 1),
        "peak_bytes": hardware.peak_memory_bytes(),
        "last_loss": loss,
    }


def alpaca() -> list[dict[str, str]]:
    """The set's first rows."""
    return json.loads(DATA.read_text(encoding="utf-8"))[:ROWS]


def kettle() -> list[dict[str, str]]:
    """Short rows of the example, each under the same paragraphs of the handbook."""
    page = (KETTLE / "handbook" / PAGE).read_text(encoding="utf-8")
    page = page[: page.rindex("\n## ", 0, CHARACTERS)]
    lines = (KETTLE / "train.jsonl").read_text(encoding="utf-8").splitlines()[:ROWS]
    return [{**json.loads(line), "system": page} for line in lines]


def prepare(folder: Path, rows: list[dict[str, str]]) -> Path:
    """The rows as a Dataset."""
    import tunesmith

    folder.mkdir()
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    source = {"path": str(folder / "rows.json"), "max_lost": 1}
    return tunesmith.prepare(model="embedded", dataset=source, cutoff=CUTOFF, share=0, out=folder / "run").dataset


def main(words: list[str]) -> None:
    """Alternate the settings, in another order each round, and write what came out."""
    if words[:1] == ["--one"]:
        print(json.dumps(measure(SETTINGS[words[1]], Path(words[2]))))
        return
    if words and not words[0].isdigit():
        sys.exit(f"rounds: a number. Got {words[0]}. Say how many, and then the settings")
    start, names = dict(os.environ), words[1:] or sorted(SETTINGS)  # preparing sets what every run is to set for itself
    if unknown := set(names) - set(SETTINGS):
        sys.exit(f"settings: unknown. Got {', '.join(sorted(unknown))}. Choose from {'; '.join(SETTINGS)}")
    known = json.loads(RESULTS.read_text(encoding="utf-8"))["runs"] if RESULTS.is_file() else []
    runs = [run for run in known if run["setting"] not in names]
    revision = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, text=True).strip()
    with tempfile.TemporaryDirectory() as folder:
        made = {
            name: prepare(Path(folder) / name, rows()) for name, rows in {"alpaca": alpaca, "kettle": kettle}.items()
        }
        for number in range(int(words[0]) if words else 3):
            for name in random.Random(number).sample(names, len(names)):
                child = [sys.executable, __file__, "--one", name, str(made[SETTINGS[name]["data"]])]
                done = subprocess.run(child, capture_output=True, text=True, check=False, env=start)
                if done.returncode:
                    sys.exit(done.stderr)
                runs.append(
                    {"revision": revision, "round": number, "setting": name, **json.loads(done.stdout.splitlines()[-1])}
                )
                print(runs[-1], flush=True)
    RESULTS.write_text(json.dumps({"rows": BATCH, "steps": STEPS, "runs": runs}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
