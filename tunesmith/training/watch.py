"""Watches a run while it happens: what each step moved, what the model can still do, and what the doctor says of it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from tunesmith.core.errors import DiseaseFound
from tunesmith.core.run import Run
from tunesmith.training.diagnosis import DiagnosisConfig, diagnose
from tunesmith.training.distributed import ALONE, Team
from tunesmith.training.record import FACTS, FINDING, PROBE, Record
from tunesmith.training.untrained import Untrained

if TYPE_CHECKING:
    from tunesmith.data.dataset import Rows
    from tunesmith.training.job import Ready

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
    is_spread: bool = False
    """Whether a process holds parts of weights only, whose updates are not measured."""


def watch_over(config: Any, ready: Ready, splits: Mapping[str, Rows]) -> Watch:
    """What is known before the first step of a TrainConfig, and what its model is asked.

    A reward model has nothing to say, and weights that are spread over processes answer nobody alone.
    """
    from tunesmith.training.context import context_of
    from tunesmith.training.probes import Probes

    dataset, tokenizer = ready.dataset, ready.tokenizer
    facts = {
        "rows": dataset.train_rows, "held_out_rows": dataset.held_out_rows, "kept": dataset.kept + dataset.truncated,
        "end_token_lost": dataset.end_token_lost, "trained_tokens": sum(splits["train"].labels),
        "vocabulary": len(tokenizer), "method": config.method.kind, "objective": config.objective.kind,
        "learning_rate": config.optimizer.peak,
    }  # fmt: skip
    is_spread = config.devices.spreads_weights
    if config.objective.kind == "reward" or is_spread:
        silent = {"silent": "the weights are spread over processes"} if is_spread else {}
        return Watch(config.diagnosis, facts | silent, is_spread=is_spread)
    rows = splits["held_out"] if len(splits["held_out"]) else splits["train"]
    how = {"rows_at_once": config.batch.rows * rows.each, "bf16": ready.plan.precision == "bf16"}
    room = context_of(ready.found.base) - getattr(config.method, "tokens", 0)
    return Watch(config.diagnosis, facts, Probes.of(config.diagnosis, rows, tokenizer, room=room, **how))


class Watcher:
    """One run under observation. All it knows is in events.jsonl, so a resumed run goes on with the same knowledge."""

    def __init__(self, watch: Watch, run: Run, team: Team = ALONE, untrained: Untrained | None = None) -> None:
        self._watch, self._run, self._team, self._untrained = watch, run, team, untrained or Untrained()
        self._model: Any = None
        self._score: Callable[[], dict[str, float]] | None = None
        self._pulse: Pulse | None = None
        events = list(run.events())
        self._examined = {event["step"] for event in events if event["event"] == PROBE}
        self._found = {event["name"] for event in events if event["event"] == FINDING}
        self._is_broken = False
        self._stop_for = ""

    @property
    def is_over(self) -> bool:
        """Whether a finding ends the run; all processes say the same."""
        return bool(self._stop_for)

    @property
    def is_alone(self) -> bool:
        """Whether no other process waits for what this one does."""
        return self._team.processes == 1

    def begin(self, model: Any, score: Callable[[], dict[str, float]] | None, step: int, **facts: Any) -> None:
        """Before the first step, or the first one after `--resume`; `score` gives the loss on a few training rows.

        Raises DiseaseFound where the facts alone are enough to stop: nothing is trained yet, so nothing is lost.
        """
        self._model, self._score = model, score
        self._pulse = None if self._watch.is_spread else Pulse(model)
        self._run.event(FACTS, **self._watch.facts, **facts)
        if step == 0:
            self.look(step)
        if self.is_over:
            raise self._error()

    def after_step(self, batches: Sequence[Sequence[int]]) -> dict[str, Any]:
        """What the step event says beside the loss: `update`, relative to the weights, and `order`, the rows' digest."""
        numbers = ",".join(str(number) for batch in batches for number in batch)
        moved = self._pulse.moved() if self._pulse else math.nan
        return {"update": moved, "order": f"{zlib.crc32(numbers.encode()):08x}"}

    def look(self, step: int, *, loss: float = 0.0, due: bool = True) -> None:
        """Examine the model where it is due, and say what is new; the first loss that is no number is looked at at once.

        All processes score the training rows together; the first one does the rest, and all hear whether it is over.
        """
        if due and step not in self._examined:
            self._examined.add(step)
            ask = self._untrained.ask if step == 0 else Untrained().ask
            train_loss = ask("training_rows", self._score)["held_out_loss"] if self._score else math.nan
            if self._team.is_first:
                finite = {"train_loss": train_loss if math.isfinite(train_loss) else None}
                self._run.event(PROBE, step=step, **finite, **ask("probe", lambda: self._watch.probe(self._model)))
        elif math.isfinite(loss) or self._is_broken:
            return
        self._is_broken = self._is_broken or not math.isfinite(loss)
        self._stop_for, *_ = self._team.collect(self._diagnose() if self._team.is_first else "")

    def _diagnose(self) -> str:
        """Say what is new. Returns the first finding to stop for, in words; all processes end with them."""
        news: list[str] = []
        for finding in diagnose(Record.read(self._run.events()), self._watch.config.ignore).findings:
            if finding.name not in self._found:
                self._found.add(finding.name)
                self._run.event(FINDING, **finding.as_dict())
                self._run.warn(str(finding))
                news.append(str(finding).rstrip("."))
        return news[0] if news and self._watch.config.on_disease == "stop" else ""

    def end(self) -> None:
        """Let the run end with the finding it was stopped for, once the first process has written its result."""
        if self.is_over and self._team.is_first:
            self._run.unproven = self._error()

    def _error(self) -> DiseaseFound:
        return DiseaseFound(
            str(self._run.folder), self._stop_for,
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
