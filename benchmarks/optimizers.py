"""What each optimizer keeps for a trained parameter, and how long its step takes, on the embedded model trained in full.

python benchmarks/optimizers.py      # one thread; writes benchmarks/results/optimizers.json
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from statistics import median
from typing import Any, get_args

os.environ["OMP_NUM_THREADS"] = "1"
RESULTS = Path(__file__).resolve().parent / "results" / "optimizers.json"
STEPS = 4


def state_bytes(entries: Any, seen: set[int]) -> int:
    """Bytes of all tensors in a state; a table that parameters share counts once."""
    import torch

    if isinstance(entries, dict):
        return sum(state_bytes(value, seen) for value in entries.values())
    if not isinstance(entries, torch.Tensor) or entries.untyped_storage().data_ptr() in seen:
        return 0
    seen.add(entries.untyped_storage().data_ptr())
    return entries.numel() * entries.element_size()


def measure(kind: str) -> dict[str, Any]:
    """Bytes of state for a parameter, and seconds of a step (median of STEPS after the first)."""
    import torch

    from tunesmith.models.load import find, load_model
    from tunesmith.training.optimizer import OptimizerConfig, make_optimizer

    torch.manual_seed(0)
    model = load_model(find("embedded"), "fp32")
    optimizer = make_optimizer(model, OptimizerConfig(kind=kind, learning_rate=1e-5), lambda _: 1.0)
    parameters, seconds = list(model.parameters()), []
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    for _ in range(STEPS + 1):
        started = time.perf_counter()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    held = state_bytes(optimizer.state_dict()["state"], set())
    count = sum(parameter.numel() for parameter in parameters)
    return {"bytes_a_parameter": round(held / count, 3), "seconds_a_step": round(median(seconds[1:]), 3)}


def main() -> None:
    from tunesmith.core import files
    from tunesmith.training.optimizer import OptimizerConfig

    kinds = get_args(OptimizerConfig.model_fields["kind"].annotation)
    found = {kind: measure(kind) for kind in kinds if kind != "paged_adamw_8bit"}
    files.write_json(RESULTS, {"model": "embedded", "method": "full", "optimizers": found})
    print(files.to_json(found))


if __name__ == "__main__":
    main()
