"""What the model said before its first step, kept for every later run that begins with the same model and the same rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tunesmith
from tunesmith.core import files, kept
from tunesmith.core.errors import CapacityError, DataError
from tunesmith.models.load import identity
from tunesmith.training.lock import machine, versions
from tunesmith.training.probes import GENERAL

if TYPE_CHECKING:
    from tunesmith.core.run import Run
    from tunesmith.data.batch import BatchConfig
    from tunesmith.data.dataset import Rows
    from tunesmith.training.job import Ready

NOTES = {".json", ".jinja", ".txt", ".model"}
"""Endings of the small files of a model; its tokenizer and what ends an answer are among them."""
DECIDING = {"method", "objective", "diagnosis", "memory", "devices", "precision", "seed"}
"""Options that an untrained model's numbers depend on, or might."""
ANSWERS, SHA256 = "answers", "sha256"


class Untrained:
    """Numbers by name, in one file; without a file every question is asked."""

    def __init__(self, path: Path | None = None, say: Callable[[str], object] = lambda text: None) -> None:
        self._path, self._say, self._has_said = path, say, False
        self._known = _read(path) if path else {}

    def ask(self, name: str, question: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `question()` says, or has said to the run that asked it first."""
        if name in self._known:
            if not self._has_said:
                self._say(f"cache     the untrained model's numbers, as found before, from {self._path}")
                self._has_said = True
            return self._known[name]
        answer = question()
        if self._path and _is_finite(answer):
            self._known[name] = answer
            self._keep(self._path)
        return answer

    def _keep(self, path: Path) -> None:
        """A cache that cannot be written costs the next run its time, and this one nothing."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept.remove_unused(path.parent, self._say)
            files.write_json(path, {ANSWERS: self._known, SHA256: files.fingerprint(self._known)})
        except (CapacityError, OSError) as error:
            self._say(f"cache     the untrained model's numbers are not kept: {error}")
            self._path = None


def _read(path: Path) -> dict[str, Any]:
    """What is kept; nothing where the file is not as it was written."""
    try:
        found = files.read_object(path)
    except (FileNotFoundError, DataError):
        return {}
    known = found.get(ANSWERS)
    if not isinstance(known, dict) or found.get(SHA256) != files.fingerprint(known):
        return {}
    kept.used(path)
    return known


def _is_finite(value: Any) -> bool:
    """Whether JSON gives back every number in a value as it was."""
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def untrained_of(config: Any, ready: Ready, splits: dict[str, Rows], batch: BatchConfig, run: Run) -> Untrained:
    """The numbers of a TrainConfig's model before its first step, with those that an earlier run has found.

    Runs of many processes ask anew, since all would have to agree; so do those that learn from their own answers, which
    are drawn.
    """
    if config.devices.total > 1 or config.objective.kind in {"ppo", "grpo"}:
        return Untrained()
    found, plan, dataset = ready.found, ready.plan, ready.dataset
    folders = dict.fromkeys([found.base, *found.under, found.tokenizer_folder])
    facts = {
        "config": config.model_dump(mode="json", include=DECIDING), "batch": batch.model_dump(),
        "weights": identity(found), "model": [_files(folder) for folder in folders],
        "data": dataset.data_sha256, "template": dataset.template_sha256, "general": files.sha256(GENERAL),
        "plan": [plan.precision, plan.checkpointing], "states": splits["train"].states is not None,
        "versions": versions(), "machine": machine(), "sources": files.sources_sha256(tunesmith),
    }  # fmt: skip
    return Untrained(kept.shelf("untrained") / f"{files.fingerprint(facts)}.json", run.say)


def _files(folder: Path) -> list[Any]:
    """Bytes of the notes; size and time of the weights, of which the identity reads samples."""
    paths = [path for path in sorted(folder.iterdir()) if path.is_file()]
    notes = [[path.name, files.sha256(path)] for path in paths if path.suffix in NOTES]
    weights = [path for path in paths if path.suffix == ".safetensors"]
    return [*notes, *([path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in weights)]
