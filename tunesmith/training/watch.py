"""Watches a run while it happens: what each step moved, what the model can still do, and what the doctor says of it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tunesmith.core.errors import DiseaseFound
from tunesmith.core.run import Run
from tunesmith.training.diagnosis import DiagnosisConfig, diagnose
from tunesmith.training.record import FACTS, FINDING, PROBE, Finding, Record

TRAINED_ROWS = 16
"""Training rows that are scored at each evaluation: the loss of the same rows has no noise of the draw, so that a small rise
or fall means something; that of the steps has other rows each time."""
TENSORS, NUMBERS = 32, 4096
"""The size of an update is measured on so many trained tensors, on the first numbers of each: a copy of half a MiB
whatever the model's size, and every kind of layer is among them."""


@dataclass(frozen=True, slots=True)
class Watch:
    """What the verb hands to the loop for the diagnosis."""

    config: DiagnosisConfig = field(default_factory=DiagnosisConfig)
    facts: dict[str, Any] = field(default_factory=dict)
    """What the data says before the first step: kept rows, end tokens lost, and so on."""
    probe: Callable[[Any], dict[str, Any]] = lambda _: {}
    """Examines the model at each evaluation; its numbers go into the `probe` events."""


class Watcher:
    """One run under observation. All it knows is in events.jsonl, so a resumed run goes on with the same knowledge."""

    def __init__(self, watch: Watch, run: Run) -> None:
        self._watch, self._run = watch, run
        self._model: Any = None
        self._score: Callable[[], dict[str, float]] | None = None
        self._pulse: Pulse | None = None
        events = list(run.events())
        self._examined = {event["step"] for event in events if event["event"] == PROBE}
        self._found = {event["name"] for event in events if event["event"] == FINDING}
        self._stop_for: Finding | None = None

    def begin(self, model: Any, score: Callable[[], dict[str, float]] | None, step: int, **facts: Any) -> None:
        """Before the first step, or the first one after `--resume`; `score` gives the loss on a few training rows.

        Raises DiseaseFound where the facts alone are enough to stop: nothing is trained yet, so nothing is lost.
        """
        self._model, self._score, self._pulse = model, score, Pulse(model)
        self._run.event(FACTS, **self._watch.facts, **facts)
        if step == 0:
            self.look(step)
        if self._stop_for:
            raise self._error(self._stop_for)

    def after_step(self, batches: Sequence[Sequence[int]]) -> dict[str, Any]:
        """What the step event says beside the loss: `update`, relative to the weights, and `order`, the rows' digest."""
        assert self._pulse
        numbers = ",".join(str(number) for batch in batches for number in batch)
        return {"update": self._pulse.moved(), "order": f"{zlib.crc32(numbers.encode()):08x}"}

    def look(self, step: int, *, loss: float = 0.0, due: bool = True) -> None:
        """Examine the model where it is due, and say what is new; a loss that is no number is looked at at once."""
        if due and step not in self._examined:
            train_loss = self._score()["held_out_loss"] if self._score else math.nan
            finite = {"train_loss": train_loss if math.isfinite(train_loss) else None}
            self._run.event(PROBE, step=step, **finite, **self._watch.probe(self._model))
            self._examined.add(step)
        elif math.isfinite(loss) or self._found:
            return
        for finding in diagnose(Record.read(self._run.events()), self._watch.config.ignore).findings:
            if finding.name not in self._found:
                self._say(finding)

    def _say(self, finding: Finding) -> None:
        self._found.add(finding.name)
        self._run.event(FINDING, **finding.as_dict())
        self._run.warn(str(finding))
        if self._watch.config.on_disease == "stop":
            self._stop_for = self._stop_for or finding

    @property
    def is_over(self) -> bool:
        """Whether the run is to end here; the loop saves first."""
        return self._stop_for is not None

    def end(self) -> None:
        """Let the run end with the finding it was stopped for, once its result is written."""
        if self._stop_for:
            self._run.unproven = self._error(self._stop_for)

    def _error(self, finding: Finding) -> DiseaseFound:
        return DiseaseFound(
            str(self._run.folder), str(finding).rstrip("."),
            do="--diagnosis.ignore leaves a disease out, --resume goes on all the same",
        )  # fmt: skip


class Pulse:
    """Measures how far a step moves the trained weights, on a sample of them."""

    def __init__(self, model: Any) -> None:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.numel()]
        every = max(1, len(trained) // TENSORS)
        self._sample = trained[::every][:TENSORS]
        self._last = self._look()

    def _look(self) -> torch.Tensor:
        with torch.no_grad():
            parts = [parameter.detach().reshape(-1)[:NUMBERS].float() for parameter in self._sample]
            return torch.cat(parts) if parts else torch.zeros(0)

    def moved(self) -> float:
        """Length of the change since the last call over the length of the weights; nan where nothing can be measured."""
        now, last = self._look(), self._last
        self._last = now
        change, length = torch.stack([(now - last).norm(), last.norm()]).tolist()
        return change / length if length else math.nan
