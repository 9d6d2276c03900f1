"""`optimizer.learning_rate: auto`: brief trainings at several rates from the run's own start, and the choice among them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UsageError
from tunesmith.models.shape import read_shape
from tunesmith.training.chart import RATES, draw_rates
from tunesmith.training.optimizer import short, usual_rate
from tunesmith.training.stop import Stop
from tunesmith.training.trials import Bench, Losses, Slice, bench, check_searchable, cut_slice, least_enough

if TYPE_CHECKING:
    from tunesmith.core.run import Run
    from tunesmith.models.shape import Shape
    from tunesmith.training.job import Ready

OPTION = "optimizer.learning_rate"
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
STEP = 2.0
MORE = 2
"""Rates that are tried beyond the grid where what is looked for lies at its edge."""
ENOUGH = 0.8
"""Of the best rate's improvement. A few steps prefer a higher rate than a whole run does, so the lowest rate that wins so
much is taken and not the best."""


def is_open(config: Any) -> bool:
    """Whether the learning rate of a TrainConfig is left to the search."""
    return config.optimizer.learning_rate == "auto"


def with_usual(config: Any, shape: Shape, run: Run) -> Any:
    """The TrainConfig with the usual learning rate where it has none, which is said."""
    if config.optimizer.learning_rate is not None:
        return config
    rate = usual_rate(config, shape)
    run.say(
        f"rates     learning rate {rate:g}, as is usual for {config.method.kind} ({config.objective.kind}) of a model {shape.hidden} wide"
    )
    return with_rate(config, rate)


def check_rate(config: Any) -> None:
    """Raise UsageError where the learning rate of a TrainConfig is left open and no search can find it."""
    if is_open(config):
        check_searchable(OPTION, config)


def settle_rate(config: Any, ready: Ready, run: Run) -> Any:
    """The TrainConfig with its learning rate as a number.

    Writes an event and a chart. Raises UsageError where the run is too short to search, where it cannot be searched, or
    where no rate lowers the loss; Paused after SIGTERM or Ctrl-C.
    """
    if not is_open(config):
        return config
    usual = usual_rate(config, read_shape(ready.found.base))
    started = time.perf_counter()
    with (
        Stop(run) as stop,
        stop.at_once("while the learning rate was searched"),
        bench(with_rate(config, usual), ready, run) as made,
    ):
        most = len(FACTORS) + MORE
        cut = cut_slice(OPTION, made.job, most)
        base, seconds = made.prepare(cut)
        run.say(
            f"rates     {len(FACTORS)} to {most} rates, {len(cut.steps)} steps of {cut.rows_a_step} rows each, compared on "
            f"{cut.scored_rows}: the work of at most "
            f"{most * cut.cost_steps:.0f} steps of the run, about {most * seconds:.0f} s"
        )
        losses = search([usual * factor for factor in FACTORS], base, lambda rates: _try(made, cut, rates, run))
    chosen = choose(losses, base)
    event = {
        "chosen": chosen, "base_loss": base, **cut.facts, "rates": [{"learning_rate": r, "loss": losses[r]} for r in sorted(losses)],
        "seconds": round(time.perf_counter() - started, 2),
    }  # fmt: skip
    run.event("rates", **event)
    draw_rates(event, run.folder / RATES)
    _tell(losses, base, chosen, run)
    if chosen is None:
        raise UsageError(
            OPTION, f"no rate from {min(losses):.2g} to {max(losses):.2g} lowers the loss in {len(cut.steps)} steps; {RATES} shows them",
            got="auto", do="Give a number",
        )  # fmt: skip
    return with_rate(config, chosen)


def with_rate(config: Any, rate: float) -> Any:
    """The TrainConfig with this learning rate."""
    return config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"learning_rate": rate})})


def search(rates: list[float], base: float, try_all: Callable[[list[float]], Losses]) -> Losses:
    """Try the rates, and up to MORE beyond them where the best is the highest or the choice the lowest one."""
    losses = try_all([short(rate) for rate in rates])
    for _ in range(MORE):
        edge = beyond(losses, base)
        if edge is None:
            break
        losses |= try_all([short(edge)])
    return losses


def _try(made: Bench, cut: Slice, rates: list[float], run: Run) -> Losses:
    with run.progress("rates", len(rates) * len(cut.steps), "steps") as bar:
        return {rate: made.train(cut, rate, bar).loss for rate in rates}


def beyond(losses: Losses, base: float) -> float | None:
    """The rate to try next where what is looked for may lie outside those tried; None where it does not."""
    best = _best(losses)
    if best is None or (choose(losses, base) or best) == min(losses):
        return min(losses) / STEP
    return max(losses) * STEP if best == max(losses) else None


def choose(losses: Losses, base: float) -> float | None:
    """The lowest rate that improves on `base` by ENOUGH of what the best one does; None where none improves."""
    return least_enough(losses, base, ENOUGH)


def _best(losses: Losses) -> float | None:
    known = {rate: loss for rate, loss in losses.items() if loss is not None}
    return min(known, key=lambda rate: (known[rate], rate)) if known else None


def _tell(losses: Losses, base: float, chosen: float | None, run: Run) -> None:
    run.say(f"  {'untrained':>13}  {base:.4f}")
    for rate, loss in sorted(losses.items()):
        said = "diverged" if loss is None else f"{loss:.4f}"
        run.say(f"  {rate:>13g}  {said}{'  chosen' if rate == chosen else ''}")
    best = _best(losses)
    if chosen is None or best is None:
        return
    why = f"the lowest that wins {ENOUGH:.0%} of what {best:g} does; whole runs want lower rates than a few steps"
    run.say(f"rates     learning rate {chosen:g}: {why}")
    if best == max(losses):
        run.say(f"rates     {best:g} is the highest that was tried: higher ones may do better still")
    if chosen == min(losses):
        run.say(f"rates     {chosen:g} is the lowest that was tried: lower ones may do as well")
