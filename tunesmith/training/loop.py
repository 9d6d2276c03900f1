"""The one training loop, on accelerate: flat, resumable, and honest about what it counts."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tunesmith.core import files
from tunesmith.core.errors import Paused
from tunesmith.core.examples import IGNORED
from tunesmith.core.run import Progress, Run
from tunesmith.data.batch import BatchConfig, collate, in_order, order_steps
from tunesmith.data.dataset import Few, Rows
from tunesmith.training import checkpoint
from tunesmith.training.checkpoint import Position, SaveConfig
from tunesmith.training.distributed import ALONE, ONE, DevicesConfig, Team, held_bytes, peak_bytes
from tunesmith.training.held_out import EvaluationConfig, held_out_scores
from tunesmith.training.judge import finite, first_evaluation, judge
from tunesmith.training.objectives import Objective
from tunesmith.training.optimizer import OptimizerConfig, learning_rate
from tunesmith.training.rollout import Rollout
from tunesmith.training.spread import Spread, Wish, spread_over
from tunesmith.training.stop import Stop
from tunesmith.training.untrained import Untrained
from tunesmith.training.watch import TRAINED_ROWS, Watch, Watcher


@dataclass(frozen=True, slots=True)
class Job:
    """Everything the loop needs, already loaded."""

    model: Any
    """The model as the method has put it: some parameters require gradients."""
    objective: Objective
    """What is optimised: `count(batch)` things, whose losses `loss(model, batch)` adds up."""
    rows: Rows
    held_out: Rows
    batch: BatchConfig
    optimizer: OptimizerConfig
    evaluation: EvaluationConfig
    save: SaveConfig
    precision: str
    seed: int
    pad_token: int
    rate_factor: Callable[[str], float]
    """The method's: name of a parameter -> its learning rate as a multiple of the schedule's."""
    shared: Callable[[Rows | Few], int]
    """Tokens with which all of these rows begin and that a pass computes once."""
    write_weights: Callable[[Any, Path], None]
    read_weights: Callable[[Any, Path], None]
    rollout: Rollout | None = None
    """How answers are drawn, for objectives that learn from their own."""
    devices: DevicesConfig = ONE
    """How model and optimizer are held; a stage is decided."""
    team: Team = ALONE
    """The processes that train together."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the manifest of a checkpoint says about its origin."""
    watch: Watch = field(default_factory=Watch)
    """What is looked at while training, and what a finding leads to."""
    untrained: Untrained = field(default_factory=Untrained)
    """What the model says before the first step."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the loop knows at its end."""

    position: Position
    steps: int
    base_loss: float | None
    held_out_loss: float | None
    tokens_per_second: float
    stopped_early: bool


def count_steps(rows: int, batch: BatchConfig, wish: OptimizerConfig) -> tuple[int, int]:
    """(steps of one epoch, steps of the run); `batch` is that of all processes."""
    per_epoch = math.ceil(rows / (batch.rows * batch.accumulate))
    return per_epoch, wish.steps or max(1, round(per_epoch * wish.epochs))


def train(job: Job, run: Run, *, resume: bool = False) -> Outcome:
    """Train until the last step or an early stop; write events, evaluations and checkpoints into the run folder.

    A resumed run continues after its newest whole checkpoint with the loss series it would have had.
    Raises CapacityError when a checkpoint cannot be written (the ones before stay whole) and Paused after SIGTERM or Ctrl-C.
    """
    checkpoint.seed_everything(job.seed + job.team.rank)
    whole = _newest_checkpoint(job, run) if resume else None
    if whole:
        job.read_weights(job.model, whole)
    made_of = Wish(job.optimizer, job.rate_factor, job.precision, job.devices, job.batch.rows)
    spread = spread_over(job.model, made_of, job.team)
    position = _continue(job, run, spread, whole) if whole else Position(0)
    spread.model.train()
    per_epoch, steps = count_steps(len(job.rows), job.team.batch(job.batch), job.optimizer)
    untrained = job.untrained if position.step == 0 else Untrained()
    tokens, seconds, watcher = 0, 0.0, Watcher(job.watch, run, job.team, untrained)
    with Stop(run) as stop, run.progress("train", steps, "steps") as bar:
        score = _scorer(job, job.held_out, spread, stop)
        first = partial(untrained.ask, "held_out", score) if score else None
        base_loss = first_evaluation(run, first, resumed=position.step > 0)
        few = Few.of(job.rows, 0 if job.rollout else TRAINED_ROWS)  # what is drawn anew has no loss to compare
        watcher.begin(
            spread.bare, _scorer(job, few, spread, stop), position.step, steps=steps, steps_per_epoch=per_epoch
        )
        bar.skip(position.step)
        position = _evaluate(job, run, score, position, steps)
        _look(watcher, stop, position, due=_is_due(job, position, steps))
        if stop.agreed(job.team):
            raise stop.paused(f"in the evaluation after step {position.step}, which is saved")
        for step, batches in _steps(job, per_epoch, position.step, steps):
            if _enough(job, position):
                break
            started = time.perf_counter()
            updates, seen = _updates(job, spread.bare, step, batches)
            rate = learning_rate(job.optimizer, step, steps)
            numbers = _one_step(job, spread, updates, rate) | seen | watcher.after_step(batches)
            seconds += time.perf_counter() - started
            tokens += numbers["tokens"]
            position = replace(position, step=step + 1)
            _report(run, bar, position, numbers, tokens / seconds)
            position = _evaluate(job, run, score, position, steps)
            _look(watcher, stop, position, loss=numbers["loss"], due=_is_due(job, position, steps))
            asked = stop.agreed(job.team)
            if asked or watcher.is_over or _save_now(job, position, steps):
                _save(job, run, spread, position)
            if asked:
                raise stop.paused(f"after step {position.step} of {steps}, which is saved")
            if watcher.is_over:
                break
    watcher.end()
    stopped = _enough(job, position)
    if stopped:
        run.say(f"stopped at step {position.step}: no better held-out loss in {position.bad_evaluations} evaluations")
    last_loss, rate = (
        position.held_out_loss if position.judged_step else base_loss,
        tokens / seconds if seconds else 0.0,
    )
    return Outcome(position, steps, base_loss, last_loss, rate, stopped or watcher.is_over)


def _look(watcher: Watcher, stop: Stop, position: Position, *, due: bool, loss: float = 0.0) -> None:
    """Examine the model where it is due; cut off by a stop, the resumed run begins with it."""
    with suppress(Paused), stop.at_once() if watcher.is_alone else nullcontext():
        watcher.look(position.step, loss=loss, due=due)


def _steps(job: Job, per_epoch: int, done: int, steps: int) -> Iterator[tuple[int, list[list[int]]]]:
    """(step, its batches of row numbers) from step `done` on, epoch after epoch."""
    shared = job.shared(job.rows)
    for epoch in range(done // per_epoch, math.ceil(steps / per_epoch)):
        order = order_steps(job.rows.lengths, job.team.batch(job.batch), job.seed, epoch, shared)
        for place, batches in enumerate(order):
            step = epoch * per_epoch + place
            if done <= step < steps:
                yield step, batches


Tensors = dict[str, torch.Tensor]
Share = list[tuple[Tensors, bool]]
"""A process's batches of an update, and whether each counts."""


def _updates(job: Job, model: Any, step: int, batches: list[list[int]]) -> tuple[list[Share], dict[str, float]]:
    """The batches of each update of a step, and what was seen while they were made."""
    if job.rollout:
        updates, seen = job.rollout.collect(model, [number for numbers in batches for number in numbers], step)
        return [[(batch, True) for batch in update] for update in updates], seen
    return [[(collate(job.rows, numbers, job.pad_token), counts) for numbers, counts in job.team.shares(batches)]], {}


def _one_step(job: Job, spread: Spread, updates: list[Share], rate: float) -> dict[str, Any]:
    """All updates of a step at one learning rate; their numbers are means."""
    spread.set_rate(rate)
    each = [_update(job, spread, share) for share in updates]
    means = {name: sum(numbers[name] for numbers in each) / len(each) for name in each[0]}
    ready = [batch for batch, counts in updates[0] if counts]
    sums = {
        "count": sum(job.objective.count(batch) for batch in ready),
        "labels": sum(int((batch["labels"] != IGNORED).sum()) for batch in ready),
        "tokens": sum(int(batch["attention_mask"].sum()) for batch in ready),
    }
    whole = {name: int(value) for name, value in job.team.total(sums).items()}
    return {**means, "learning_rate": rate, **whole}


def step_apart(job: Job, spread: Spread, batches: list[list[int]], rate: float) -> dict[str, Any]:
    """One step on these rows at one learning rate, as `train` makes it, without its records. Not for rows that are drawn."""
    return _one_step(job, spread, _updates(job, spread.bare, 0, batches)[0], rate)


def _update(job: Job, spread: Spread, share: Share) -> dict[str, float]:
    """Forward and backward over the batches, then move the weights.

    The loss is the mean over all that the objective counts in them (labelled tokens, pairs), however it is spread over
    batches and processes, so that both give the gradient of the one large batch.
    """
    own = sum(job.objective.count(batch) for batch, counts in share if counts)
    count = job.team.total({"count": own})["count"]
    over = max(count, 1)  # a step without labels has no gradient, and its weights stay numbers
    sums = Counter[str]()
    for place, (batch, counts) in enumerate(share, 1):
        loss, seen = job.objective.loss(spread.model, _there(batch, spread))
        spread.backward(loss * counts / over if job.team.processes > 1 else loss / over, is_last=place == len(share))
        sums.update({name: value * counts / over for name, value in {"loss": loss.item(), **seen}.items()})
    means = job.team.total(sums)
    return {**means, "loss": means["loss"] if count else math.nan, "gradient_norm": spread.step()}


def _there(batch: Tensors, spread: Spread) -> Tensors:
    return {name: value.to(spread.device) for name, value in batch.items()}


def _report(run: Run, bar: Progress, position: Position, numbers: dict[str, Any], rate: float) -> None:
    run.event(
        "step", step=position.step, **finite(numbers), tokens_per_second=round(rate, 1), memory_bytes=held_bytes()
    )
    bar.advance(1, loss=numbers["loss"], tokens_a_second=round(rate))


def _scorer(job: Job, rows: Rows | Few, spread: Spread, stop: Stop) -> Callable[[], dict[str, float]] | None:
    if not len(rows):
        return None
    passes = in_order(rows.lengths, job.batch, job.shared(rows))

    def score() -> dict[str, float]:
        # one that left would keep the others waiting
        with stop.at_once() if job.team.processes == 1 else nullcontext():
            if job.rollout:
                return job.rollout.score(spread.bare)
            ready = lambda numbers: _there(collate(rows, numbers, job.pad_token), spread)  # noqa: E731
            return held_out_scores(job.objective, spread.model, passes, ready, job.team)

    return score


def _evaluate(
    job: Job, run: Run, score: Callable[[], dict[str, float]] | None, position: Position, steps: int
) -> Position:
    """Score the held-out rows where it is due; cut off by a stop, it stays due, and the resumed run begins with it."""
    if score is None or not _is_due(job, position, steps) or position.judged_step == position.step:
        return position
    try:
        scores = score()
    except Paused:
        return position
    return judge(position, scores, run)


def _is_due(job: Job, position: Position, steps: int) -> bool:
    return position.step % job.evaluation.every_steps == 0 or position.step == steps


def _enough(job: Job, position: Position) -> bool:
    """Whether the patience is used up."""
    return job.evaluation.patience is not None and position.bad_evaluations >= job.evaluation.patience


def _save_now(job: Job, position: Position, steps: int) -> bool:
    best = job.evaluation.keep_best and position.best_step == position.step
    return _enough(job, position) or best or position.step == steps or position.step % job.save.every_steps == 0


def _save(job: Job, run: Run, spread: Spread, position: Position) -> None:
    target = checkpoint.folder_of(run.folder, position.step)
    optimizer, randoms = spread.whole_optimizer(), job.team.collect(checkpoint.random_now())
    with spread.whole_weights():
        if job.team.is_first:
            checkpoint.save(
                target, position, optimizer, randoms=randoms, facts=job.facts,
                weights=lambda folder: job.write_weights(spread.bare, folder),
            )  # fmt: skip
            run.event("saved", step=position.step, checkpoint=target.name)
            checkpoint.remove_old(run.folder, job.save.keep, position.best_step if job.evaluation.keep_best else None)
    job.team.wait()


def _newest_checkpoint(job: Job, run: Run) -> Path | None:
    """The first process looks, and sets aside what is torn."""
    with job.team.first_alone():
        whole = checkpoint.complete_checkpoints(run)
    if not whole:
        run.say("no whole checkpoint yet: starting from the first step")
    return whole[-1] if whole else None


def _continue(job: Job, run: Run, spread: Spread, newest: Path) -> Position:
    position = checkpoint.restore(newest, spread.whole_optimizer(), job.team.rank)
    run.say(f"continuing after step {position.step}")
    best = checkpoint.folder_of(run.folder, position.best_step or position.step)
    if job.evaluation.keep_best and files.verify(best):
        run.warn(f"{best.name}, the best one so far, is no longer whole; the best of those to come is taken")
        return replace(position, best_loss=None, best_step=None, bad_evaluations=0)
    return position


def summarize(outcome: Outcome, run: Run, per_epoch: int) -> dict[str, Any]:
    """What a run of several sessions has to say as one, from its own events: mean training loss over the last epoch (None
    where it is no number), the peak of memory; the speed is that of the last session that trained.
    """
    series = loss_series(run)
    last = [numbers for step, numbers in series.items() if step > outcome.position.step - per_epoch]
    counted = [(math.nan if n["loss"] is None else n["loss"], n["count"]) for n in last if n["count"]]
    loss = sum(loss * count for loss, count in counted) / max(sum(count for _, count in counted), 1)
    known = loss if counted and math.isfinite(loss) else None
    speeds = [outcome.tokens_per_second, *(numbers["tokens_per_second"] for numbers in series.values())]
    peaks = [peak_bytes(), *(numbers["memory_bytes"] for numbers in series.values())]
    return {
        "train_loss": known, "epochs": outcome.position.step / per_epoch, "tokens_per_second": round(speeds[0] or speeds[-1], 2),
        "peak_memory_bytes": max(peaks),
    }  # fmt: skip


def loss_series(run: Run) -> dict[int, dict[str, Any]]:
    """step -> its event; a step that a resumed run repeated counts once."""
    return {event["step"]: event for event in run.events() if event["event"] == "step"}
