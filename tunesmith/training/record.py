"""What a run has written down about itself, put in order, and what a finding is. Knows no disease."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

FACTS, PROBE, FINDING = "facts", "probe", "finding"
"""Kinds of events that watching adds to `step` and `evaluation`."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A disease that a run has, and what to do."""

    name: str
    step: int
    """Optimizer step where it began; 0 is before the first one."""
    seen: str
    """The evidence in words."""
    numbers: dict[str, Any]
    """The evidence, number by number."""
    remedy: str

    def as_dict(self) -> dict[str, Any]:
        """The finding as it stands in events.jsonl and result.json."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.name} since step {self.step}: {self.seen}. {self.remedy}"


@dataclass(frozen=True, slots=True)
class Record:
    """The events of a run by kind, each step once (a resumed run repeats some), in the order of the steps."""

    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    """With the held-out loss; the first one is before training."""
    probes: list[dict[str, Any]]
    """With sample answers, the general set and the end token's loss; the first one is before training."""
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, events: Iterable[dict[str, Any]]) -> Record:
        """Sort events; the last one counts where a step was taken again."""
        kinds: dict[str, dict[int, dict[str, Any]]] = {"step": {}, "evaluation": {}, PROBE: {}}
        facts: dict[str, Any] = {}
        for event in events:
            if event["event"] in kinds:
                kinds[event["event"]][event["step"]] = event
            elif event["event"] == FACTS:
                facts = event
        steps, evaluations, probes = ([found[step] for step in sorted(found)] for found in kinds.values())
        return cls(steps, evaluations, probes, facts)

    @property
    def step(self) -> int:
        """The last step taken."""
        return self.steps[-1]["step"] if self.steps else 0

    @property
    def share_done(self) -> float:
        """Steps taken of the steps planned; 1 where nobody knows the plan."""
        return self.step / self.facts["steps"] if self.facts.get("steps") else 1.0

    @property
    def is_finished(self) -> bool:
        """Whether all planned steps were taken."""
        return self.share_done >= 1

    @property
    def held_out(self) -> list[tuple[int, float]]:
        """(step, held-out loss) of every evaluation, the first one before training."""
        return _finite(self.evaluations, "held_out_loss")

    @property
    def trained(self) -> list[tuple[int, float]]:
        """(step, loss) on a few training rows, always the same ones; the first one before training."""
        return _finite(self.probes, "train_loss")

    @property
    def path(self) -> float:
        """How far the weights have come: all updates, each relative to the weights, added up."""
        return sum(step.get("update") or 0.0 for step in self.steps)

    @property
    def improved(self) -> float:
        """Share of the untrained model's loss that is won by the last two evaluations, on held-out or training rows."""
        return max((1 - _mean(series[1:][-2:]) / series[0][1] for series in self._series()), default=0.0)

    @property
    def is_settled(self) -> bool:
        """Whether the model is not in the middle of learning: past half of the run, and the loss of the last two
        evaluations fell by less than SETTLED; or at the end.
        """
        series = next(iter(self._series()), [])
        falls = len(series) > 2 and series[-1][1] < (1 - SETTLED) * series[-3][1]
        return self.is_finished or (self.share_done >= HALF and not falls)

    def _series(self) -> list[list[tuple[int, float]]]:
        return [series for series in (self.held_out, self.trained) if len(series) > 1 and series[0][1] > 0]


HALF = 0.5
"""Share of the run after which slowness is no longer the warmup's and the start's."""
SETTLED = 0.05
"""Relative fall of the loss over two evaluations; a model that still learns faster than that talks nonsense on its way
(small healthy models loop for a tenth of their run and then speak)."""


def _mean(series: list[tuple[int, float]]) -> float:
    return sum(loss for _, loss in series) / len(series)


def _finite(events: list[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(event["step"], event[name]) for event in events if event.get(name) is not None]


def rate_remedy(record: Record, factor: float, why: str) -> str:
    """The sentence that says to type another learning rate."""
    rate = record.facts.get("learning_rate")
    typed = f"--optimizer.learning_rate {rate * factor:.1g}" if rate else f"a learning rate {factor:g} times as large"
    return f"Try {typed}: {why}."
