"""Train briefly from the run's own start, score on a few rows, put everything back. Knows no question that this answers."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from tunesmith.core.errors import UsageError
from tunesmith.core.hardware import give_back_memory
from tunesmith.data.batch import BatchConfig, collate, in_order, order_steps
from tunesmith.data.dataset import SPLITS, Few, Rows, spread
from tunesmith.models.split import states_before
from tunesmith.training.checkpoint import put_random, random_now, seed_everything
from tunesmith.training.held_out import held_out_scores
from tunesmith.training.loop import Job, count_steps, step_apart
from tunesmith.training.spread import Wish, spread_over

if TYPE_CHECKING:
    from tunesmith.core.run import Progress, Run
    from tunesmith.training.job import Ready

SHARE = 0.25
"""Of the run's work: more is not spent on a search."""
STEPS = range(6, 13)
"""Steps of a trial: fewer say nothing, more add little to the order of what is compared."""
WARM_STEPS = 2
SCORED_ROWS = 16
FEWEST_SCORED_ROWS = 4
BACKWARD = 3
"""A step costs as much as this many forward passes over its tokens."""

Losses = dict[Any, float | None]
"""What is compared (a rate, a depth) -> loss after its trial; None where it diverged."""
Steps = list[list[list[int]]]
"""Batches of row numbers, step by step."""


@dataclass(frozen=True, slots=True)
class Slice:
    """The rows of a search: all trials train on the same ones in the same order, and are scored on others."""

    steps: Steps
    scored: list[int]
    is_held_out: bool
    """Whether `scored` are held-out rows; otherwise they are training rows that no trial trains on."""
    cost_steps: float
    """What one trial costs, in steps of the run."""
    step_share: float
    """A trial's step, in steps of the run."""

    @property
    def rows_a_step(self) -> int:
        """Rows of a trial's step."""
        return sum(map(len, self.steps[0]))

    @property
    def scored_rows(self) -> str:
        """What is scored, in words."""
        return f"{len(self.scored)} {'held-out' if self.is_held_out else 'other training'} rows"

    @property
    def facts(self) -> dict[str, Any]:
        """What an event says of it."""
        return {
            "steps": len(self.steps), "rows": self.rows_a_step, "scored": len(self.scored), "held_out": self.is_held_out,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of one brief training."""

    loss: float | None
    """On the scored rows; None where the loss was no number on the way."""
    seconds_a_step: float
    """Median of its steps."""


def check_searchable(option: str, config: Any) -> None:
    """Raise UsageError where no brief training can say anything; `config` is train's."""
    what = None
    if config.objective.kind in {"ppo", "grpo"}:
        what = f"objective {config.objective.kind} learns from answers it draws, and a few steps of them say nothing"
    elif config.devices.kind != "one":
        what = f"trials are made in one process, and devices.kind is {config.devices.kind}"
    if what:
        raise UsageError(option, what, got="auto", do="Give a number")


def cut_slice(option: str, job: Job, trials: int) -> Slice:
    """The rows of at most `trials` trials, each as long as it may be for all to cost SHARE of the run.

    Rows come from the shorter half, half of a step's rows at a time. Raises UsageError where the run is too short, or the
    rows are too few.
    """
    per_epoch, run_steps = count_steps(len(job.rows), job.batch, job.optimizer)
    scored, free = _apart(job)
    batch = _half(job)
    steps = _whole_steps(job, batch, free)
    if len(job.held_out) and len(scored) < FEWEST_SCORED_ROWS:
        raise UsageError(
            option, f"its trials need about {2 * FEWEST_SCORED_ROWS} held-out rows to score", got=f"auto with {len(job.held_out)}",
            do="Give a number, or a larger --evaluation.share",
        )  # fmt: skip
    if len(scored) < FEWEST_SCORED_ROWS or len(steps) < STEPS[0]:
        needed = 2 * (STEPS[0] * batch.rows * batch.accumulate + (0 if len(job.held_out) else SCORED_ROWS))
        raise UsageError(
            option, f"its trials need about {needed} training rows", got=f"auto with {len(job.rows)}",
            do="Give a number, or smaller --batch.rows",
        )  # fmt: skip
    whole = BACKWARD * sum(job.rows.lengths) / per_epoch  # of one step of the run, in tokens of a forward pass
    score = sum((job.held_out if len(job.held_out) else job.rows).lengths[number] for number in scored)
    each = [BACKWARD * sum(job.rows.lengths[number] for part in step for number in part) for step in steps]
    cost = [(score + sum(each[:count])) / whole for count in range(len(each) + 1)]
    count = max((n for n in range(STEPS[0], len(cost)) if trials * cost[n] <= SHARE * run_steps), default=0)
    if not count:
        needed = math.ceil(trials * cost[STEPS[0]] / SHARE)
        raise UsageError(
            option, f"{trials} trials should cost a quarter of the run at most, so it needs {needed} steps",
            got=f"auto with {run_steps}", do="Give a number, or train longer",
        )  # fmt: skip
    return Slice(steps[:count], scored, bool(len(job.held_out)), cost[count], sum(each[:count]) / count / whole)


def _half(job: Job) -> BatchConfig:
    """Half of a step's rows, and of all rows at most a tenth."""
    together = max(1, min(job.batch.rows * job.batch.accumulate // 2, len(job.rows) // 10))
    rows = min(job.batch.rows, together)
    return job.batch.model_copy(update={"rows": rows, "accumulate": together // rows})


def _whole_steps(job: Job, batch: BatchConfig, free: list[int]) -> Steps:
    lengths, shared = [job.rows.lengths[number] for number in free], job.shared(job.rows)
    order = order_steps(lengths, batch, job.seed, 0, shared) if free else []
    steps = [[[free[place] for place in part] for part in step] for step in order]
    return [step for step in steps if sum(map(len, step)) == batch.rows * batch.accumulate][: STEPS[-1]]


def _apart(job: Job) -> tuple[list[int], list[int]]:
    """(rows to score, training rows that are free to train on), each from the shorter half of its split."""
    shorter = _shorter_half(job.rows)
    if len(job.held_out):
        chosen = _shorter_half(job.held_out)
        return [chosen[place] for place in spread(len(chosen), SCORED_ROWS)], shorter
    places = set(spread(len(shorter), SCORED_ROWS))
    return [shorter[place] for place in sorted(places)], [row for n, row in enumerate(shorter) if n not in places]


def _shorter_half(rows: Rows) -> list[int]:
    """The numbers of the rows that are no longer than the median, in their order."""
    middle = sorted(rows.lengths)[len(rows) // 2]
    return [number for number, length in enumerate(rows.lengths) if length <= middle and rows.labels[number]]


def least_enough(losses: Losses, base: float, enough: float) -> Any:
    """The lowest of what was compared that improves on `base` by `enough` of what the best one does; None where none improves."""
    wins = {what: base - loss for what, loss in losses.items() if loss is not None}
    top = max(wins.values(), default=0.0)
    return min(what for what, won in wins.items() if won >= enough * top) if top > 0 else None


class Bench:
    """A model of its own, as the run will have it before its first step, and what trials of it need."""

    def __init__(self, config: Any, ready: Ready, run: Run) -> None:
        from tunesmith.training.distributed import ALONE
        from tunesmith.training.job import load_for, make_job

        splits = {split: Rows(ready.dataset.dataset, split) for split in SPLITS}
        self.job = make_job(config, ready, load_for(config, ready, splits, run), splits, ALONE, run)
        model = self.job.model
        self._attributes = dict(vars(model))
        self._start = [(p, p.detach().to("cpu", copy=True)) for p in model.parameters() if p.requires_grad]

    def train(self, cut: Slice, rate: float, bar: Progress) -> Trial:
        """Train on the slice at a constant rate from the start, and score; ends early where a loss is no number."""
        with self._from_the_start() as held:
            held.model.train()
            seconds: list[float] = []
            for batches in cut.steps:
                numbers, took = self._timed(held, batches, rate)
                seconds.append(took)
                bar.advance(1, learning_rate=rate, loss=numbers["loss"])
                if not math.isfinite(numbers["loss"]) or not math.isfinite(numbers["gradient_norm"]):
                    return Trial(None, median(seconds))
            loss = self._score(cut, held)
        return Trial(loss if math.isfinite(loss) else None, median(seconds))

    def prepare(self, cut: Slice) -> tuple[float, float]:
        """(loss of the untrained model on the scored rows, seconds that one trial will take), after a few steps to warm up."""
        with self._from_the_start() as held:
            started = time.perf_counter()
            base, score_seconds = self._score(cut, held), time.perf_counter() - started
            held.model.train()
            steps = [self._timed(held, batches, self.job.optimizer.peak)[1] for batches in cut.steps[:WARM_STEPS]]
        return base, score_seconds + len(cut.steps) * min(steps)

    def front_seconds(self, cut: Slice, entry: int) -> float:
        """Seconds that the layers before `entry`, which train nothing, take of a trial's step; the median."""
        job, seconds = self.job, []
        with self._from_the_start() as held:
            for batches in cut.steps:
                started = time.perf_counter()
                for numbers in batches:
                    batch = self._batch(job.rows, numbers, held)
                    with torch.autocast(held.device.type, torch.bfloat16, enabled=job.precision == "bf16"):
                        states_before(held.bare, batch, entry)
                seconds.append(time.perf_counter() - started)
        return median(seconds)

    def put_back(self) -> None:
        """Give the trained weights their values at the start, and forget the gradients."""
        with torch.no_grad():
            for parameter, value in self._start:
                parameter.copy_(value)
                parameter.grad = None

    def close(self) -> None:
        """Let go of the model: whoever still holds the bench would keep it in memory beside the run's own."""
        del self.job, self._start, self._attributes

    def _timed(self, held: Any, batches: list[list[int]], rate: float) -> tuple[dict[str, Any], float]:
        started = time.perf_counter()
        return step_apart(self.job, held, batches, rate), time.perf_counter() - started

    def _score(self, cut: Slice, held: Any) -> float:
        job, few = self.job, Few.these(self.job.held_out if cut.is_held_out else self.job.rows, cut.scored)

        ready = partial(self._batch, few, held=held)
        passes = in_order(few.lengths, job.batch, job.shared(few))
        return held_out_scores(job.objective, held.model, passes, ready)["held_out_loss"]

    def _batch(self, rows: Rows | Few, numbers: list[int], held: Any) -> dict[str, torch.Tensor]:
        return {name: value.to(held.device) for name, value in collate(rows, numbers, self.job.pad_token).items()}

    @contextmanager
    def _from_the_start(self) -> Iterator[Any]:
        """The model at its start with a new optimizer and the run's first random numbers; afterwards as it was."""
        job = self.job
        self.put_back()
        seed_everything(job.seed)
        try:
            yield spread_over(
                job.model, Wish(job.optimizer, job.rate_factor, job.precision, job.devices, job.batch.rows), job.team
            )
        finally:  # accelerate wraps forward, once for every time
            vars(job.model).clear()
            vars(job.model).update(self._attributes)


@contextmanager
def bench(config: Any, ready: Ready, run: Run) -> Iterator[Bench]:
    """A bench for a TrainConfig that leaves nothing open; afterwards random numbers and memory are as they were."""
    randoms = random_now()
    made = Bench(config, ready, run)
    try:
        yield made
    finally:
        made.close()
        put_random(randoms)
        gc.collect()  # a lean model refers to itself
        give_back_memory()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
