"""Log-probabilities under the untrained model, computed once and kept for every later run on the same data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith.core import files
from tunesmith.core.hub import cache_folder
from tunesmith.training.distributed import on_device

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from tunesmith.core.run import Run
    from tunesmith.data.dataset import Rows

NAME = "reference"
"""What batches carry them as."""


def add_reference(model: Any, splits: dict[str, Rows], key: dict[str, str], run: Run) -> None:
    """Give every split its reference log-probabilities, (rows, sequences) fp32, from the cache or from `model`.

    `key` names the weights, the data, the precision and the device they belong to, by which they are kept.
    """
    for split, rows in splits.items():
        if not len(rows):
            continue
        path = cache_folder() / "references" / f"{files.fingerprint({**key, 'split': split})}.npy"
        known = _recall(path, (len(rows), rows.each))
        if known is None:
            known = _compute(model, rows, split, key, run)
            _keep(path, known, run)
        rows.extras[NAME] = known


def _recall(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """What is kept, or None where nothing is, or what a power cut has left of it."""
    import numpy as np

    try:
        found = np.load(path)
    except (FileNotFoundError, EOFError, ValueError):
        return None
    return found if found.shape == shape else None


def _keep(path: Path, values: np.ndarray, run: Run) -> None:
    """A cache that cannot be written costs the next run its time, and this one nothing."""
    import io
    import os

    import numpy as np

    written = io.BytesIO()
    np.save(written, values)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(written.getvalue())
        os.replace(temporary, path)
    except OSError as error:
        run.warn(f"the reference log-probabilities are not kept: {error}")


def _compute(model: Any, rows: Rows, split: str, key: dict[str, str], run: Run, rows_at_once: int = 8) -> np.ndarray:
    import numpy as np
    import torch

    from tunesmith.data.batch import collate
    from tunesmith.models.head import label_losses

    order = sorted(range(len(rows)), key=lambda number: rows.lengths[number])
    found = np.zeros((len(rows), rows.each), dtype=np.float32)
    with (
        on_device(model, key["device"]) as device,
        torch.no_grad(),
        torch.autocast(device.type, torch.bfloat16, enabled=key["precision"] == "bf16"),
        run.progress(f"reference of {split}", len(rows), "rows") as bar,
    ):
        for start in range(0, len(order), rows_at_once):
            numbers = order[start : start + rows_at_once]
            batch = {name: value.to(device) for name, value in collate(rows, numbers, 0).items()}
            said = -label_losses(model, batch).sum(dim=1)  # (sequences B,)
            found[numbers] = said.view(rows.each, -1).T.float().cpu().numpy()
            bar.advance(len(numbers))
    return found
