"""`method.last_layers: auto` (freeze: `method.layers`): brief trainings of a few depths, their loss against the time they take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import CapacityError, UsageError
from tunesmith.models.depth import OPTIONS
from tunesmith.models.shape import read_shape
from tunesmith.planning.table import gib
from tunesmith.training.activation_cache import first_computed
from tunesmith.training.chart import DEPTHS, draw_depths
from tunesmith.training.loop import count_steps
from tunesmith.training.optimizer import usual_rate
from tunesmith.training.rates import is_open as is_rate_open
from tunesmith.training.rates import with_rate
from tunesmith.training.stop import Stop
from tunesmith.training.trials import Bench, Slice, bench, check_searchable, cut_slice, least_enough

if TYPE_CHECKING:
    from tunesmith.core.run import Progress, Run
    from tunesmith.models.shape import Shape
    from tunesmith.training.job import Ready

PARTS = (1, 3, 8)
"""All layers, a third and an eighth of them are compared."""
ENOUGH = 0.9
"""Of the best depth's improvement: the fewest layers that win so much are taken."""


def is_open(config: Any) -> bool:
    """Whether the number of trained layers of a TrainConfig is left to trials."""
    name = OPTIONS.get(config.method.kind)
    return name is not None and getattr(config.method, name) == "auto"


def check_depth(config: Any) -> None:
    """Raise UsageError where the depth of a TrainConfig is left open and no trial can find it."""
    if is_open(config):
        check_searchable(_option(config), config)


def _option(config: Any) -> str:
    return f"method.{OPTIONS[config.method.kind]}"


def with_depth(config: Any, layers: int) -> Any:
    """The TrainConfig whose method trains so many layers."""
    return config.model_copy(update={"method": config.method.model_copy(update={OPTIONS[config.method.kind]: layers})})


def depths_of(layers: int) -> list[int]:
    """What is compared in a model of so many layers, the most first."""
    return sorted({max(1, round(layers / part)) for part in PARTS}, reverse=True)


def settle_depth(config: Any, ready_for: Callable[[Any], Ready], run: Run) -> Any:
    """The TrainConfig with the number of its trained layers; `ready_for` plans one that has it.

    Writes an event and a chart. Raises UsageError where the run is too short for trials, where it cannot have them, or
    where no depth lowers the loss; CapacityError where no depth fits; Paused after SIGTERM or Ctrl-C.
    """
    if not is_open(config):
        return config
    started = time.perf_counter()
    shape = read_shape(ready_for(config).found.base)
    at_rate = with_rate(config, usual_rate(config, shape)) if is_rate_open(config) else config
    with Stop(run) as stop, stop.at_once("while depths were compared"):
        found = _compare(_fitting(at_rate, shape, ready_for, run), shape, run)
    chosen = least_enough({one["layers"]: one["loss"] for one in found["depths"]}, found["base_loss"], ENOUGH)
    event = {
        "chosen": chosen, "layers": shape.layers, "learning_rate": at_rate.optimizer.peak, **found,
        "seconds": round(time.perf_counter() - started, 2),
    }  # fmt: skip
    run.event("depths", **event)
    draw_depths(event, run.folder / DEPTHS)
    _tell(event, _option(config), run)
    if chosen is None:
        raise UsageError(
            _option(config), f"no depth lowers the loss in {event['steps']} steps at learning rate "
            f"{event['learning_rate']:g}; {DEPTHS} shows them", got="auto", do="Give a number, or another learning rate",
        )  # fmt: skip
    return with_depth(config, chosen)


def _fitting(config: Any, shape: Shape, ready_for: Callable[[Any], Ready], run: Run) -> list[tuple[Any, Ready]]:
    """(config, what is known of it) of every depth whose plan fits, or may be exceeded, the most layers first."""
    wishes = {depth: with_depth(config, depth) for depth in depths_of(shape.layers)}
    every = {depth: (wish, ready_for(wish)) for depth, wish in wishes.items()}
    kept = {depth: it for depth, it in every.items() if it[1].plan.fits or config.memory.exceed == "warn"}
    for depth in every.keys() - kept.keys():
        plan = every[depth][1].plan
        run.say(
            f"depths    {depth} layers need {gib(plan.total_bytes)} and {gib(plan.available_bytes)} are free: not compared"
        )
    if not kept:
        least = every[min(every)][1].plan
        raise CapacityError(
            "memory", f"even training {min(every)} of {shape.layers} layers needs about {gib(least.total_bytes)}", got=f"{gib(least.available_bytes)} free",
            do=least.advice or "Nothing small makes it fit; --memory.exceed warn tries all the same",
        )  # fmt: skip
    return list(kept.values())


def _compare(wishes: list[tuple[Any, Ready]], shape: Shape, run: Run) -> dict[str, Any]:
    """The numbers of the event, those of each depth under `depths`."""
    found: dict[str, Any] = {"depths": []}
    for config, ready in wishes:
        is_first, option = not found["depths"], _option(config)
        # what the run reads from disk would first be made for all rows; what it saves is reckoned with below
        memory = config.memory.model_copy(update={"activation_cache": "off"})
        with bench(config.model_copy(update={"memory": memory}), ready, run) as made:
            cut = cut_slice(option, made.job, len(wishes))
            base, _ = made.prepare(cut)
            if is_first:
                cost = len(wishes) * cut.cost_steps
                run.say(
                    f"depths    {len(wishes)} depths of {shape.layers} layers, {len(cut.steps)} steps of {cut.rows_a_step} rows each, "
                    f"compared on {cut.scored_rows}: the work of at most {cost:.0f} steps of the run"
                )
                found |= {**cut.facts, "base_loss": base}
            with run.progress("depths", len(cut.steps), "steps") as bar:
                found["depths"].append(_one(config, made, cut, shape, ready, bar))
    return found


def _one(config: Any, made: Bench, cut: Slice, shape: Shape, ready: Ready, bar: Progress) -> dict[str, Any]:
    """What came of one depth."""
    job = made.job
    trial = made.train(cut, job.optimizer.peak, bar)
    entry, reason = first_computed(config, job.model, shape, job.rows)
    per_epoch, steps = count_steps(len(job.rows), job.batch, job.optimizer)
    seconds = steps * trial.seconds_a_step / cut.step_share
    if entry and not reason:  # the front layers are computed in the first epoch alone
        seconds -= max(0, steps - per_epoch) * made.front_seconds(cut, entry) / cut.step_share
    return {
        "layers": getattr(config.method, OPTIONS[config.method.kind]), "loss": trial.loss, "run_seconds": round(seconds, 1),
        "memory_bytes": ready.plan.total_bytes, "cached_layers": 0 if reason else entry,
    }  # fmt: skip


def _tell(event: dict[str, Any], option: str, run: Run) -> None:
    run.say(f"  {'untrained':>13}  {event['base_loss']:.4f}")
    for one in event["depths"]:
        name = f"{'all' if one['layers'] == event['layers'] else 'last'} {one['layers']}"
        loss = "diverged" if one["loss"] is None else f"{one['loss']:.4f}"
        facts = f"the run about {one['run_seconds']:.0f} s, {gib(one['memory_bytes'])}"
        run.say(f"  {name:>13}  {loss}  {facts}{'  chosen' if one['layers'] == event['chosen'] else ''}")
    if event["chosen"] is not None:
        run.say(
            f"depths    {event['chosen']} layers: the fewest that win {ENOUGH:.0%} of what the best depth does, at learning rate "
            f"{event['learning_rate']:g}. --{option} N takes another"
        )
