"""Widths of batches in steps of 1, 4 and 8 tokens: speed and peak memory of real training steps (decision 005).

python benchmarks/shapes.py [rounds]         # alternating, each run in its own process; writes benchmarks/results/shapes.json
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "shapes.json"
WIDTHS = (1, 4, 8)
ROWS, STEPS, WARM = 16, 40, 2


def measure(width: int, folder: Path) -> dict[str, Any]:
    """LoRA rank 32 in bf16 on the kettle rows, as the loop does it; tokens a second count no padding."""
    from tunesmith.core.hardware import peak_memory_bytes, wait_without_spinning

    wait_without_spinning()  # before torch is loaded, as the command line does it
    import torch
    from accelerate import Accelerator

    from tunesmith.data import batch
    from tunesmith.data.dataset import Rows
    from tunesmith.models.head import label_losses
    from tunesmith.models.load import find, load_model
    from tunesmith.models.methods import Lora
    from tunesmith.training.optimizer import OptimizerConfig, make_optimizer

    batch.WIDTH_STEP = width
    torch.manual_seed(0)
    rows, method = Rows(folder, "train"), Lora(rank=32, alpha=64)
    accelerator = Accelerator(mixed_precision="bf16")
    model = method.put(load_model(find("embedded"), "bf16"))
    wish = OptimizerConfig(learning_rate=1e-3)
    model, optimizer = accelerator.prepare(model, make_optimizer(model, wish, method.rate_factor))
    model.train()
    tokens, seconds, loss = 0, 0.0, 0.0
    for number, (numbers,) in enumerate(batch.order_steps(rows.lengths, batch.BatchConfig(rows=ROWS), 0, 0)[:STEPS]):
        tensors = batch.collate(rows, numbers, 2)
        started = time.perf_counter()
        value = label_losses(model, tensors).sum() / (tensors["labels"] != -100).sum()
        accelerator.backward(value)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if number >= WARM:
            tokens += int(tensors["attention_mask"].sum())
            seconds += time.perf_counter() - started
        loss = float(value)
    peak = peak_memory_bytes()
    return {"width": width, "tokens_per_second": round(tokens / seconds, 1), "peak_bytes": peak, "last_loss": loss}


def prepare(folder: Path) -> Path:
    """The kettle rows as a Dataset."""
    import tunesmith

    rows = [str(HERE.parent / "examples" / "kettle" / "en" / name) for name in ("train.jsonl", "general.jsonl")]
    return tunesmith.prepare(model="embedded", dataset={"path": rows}, out=folder).dataset


def main(words: list[str]) -> None:
    """Alternate the widths for some rounds and write what came out."""
    if words[:1] == ["--one"]:
        print(json.dumps(measure(int(words[1]), Path(words[2]))))
        return
    import tempfile

    runs = []
    with tempfile.TemporaryDirectory() as folder:
        dataset = prepare(Path(folder) / "run")
        for number in range(int(words[0]) if words else 3):
            for width in WIDTHS:
                child = [sys.executable, __file__, "--one", str(width), str(dataset)]
                done = subprocess.run(child, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(done.stderr)
                runs.append({"round": number, **json.loads(done.stdout.splitlines()[-1])})
                print(runs[-1], flush=True)
    RESULTS.write_text(json.dumps({"rows": ROWS, "steps": STEPS, "runs": runs}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
