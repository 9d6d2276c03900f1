"""Fine-tune a model on a dataset; `--resume` continues an interrupted run, `--replay` repeats one and compares."""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from tunesmith.core.config import Config, Seed
from tunesmith.core.errors import CapacityError, DataError, ModelError
from tunesmith.data.batch import BatchConfig
from tunesmith.data.source import Source
from tunesmith.models.methods import Lora, Method
from tunesmith.training.checkpoint import SaveConfig
from tunesmith.training.context import check_context
from tunesmith.training.diagnosis import DiagnosisConfig
from tunesmith.training.distributed import (
    ALONE,
    DevicesConfig,
    Team,
    check_companions,
    check_device,
    count_peak_anew,
    plan_devices,
)
from tunesmith.training.held_out import EvaluationConfig, check_patience
from tunesmith.training.launch import check_devices, launch
from tunesmith.training.monitor import TrackerName, check_trackers, tracked
from tunesmith.training.objectives import Grpo, Objective, Ppo, Sft
from tunesmith.training.optimizer import OptimizerConfig, check_optimizer
from tunesmith.training.rewards import check_rewards

if TYPE_CHECKING:
    from tunesmith.core.artifacts import Dataset, HostCommands, MemoryPlan, Training
    from tunesmith.core.run import Run
    from tunesmith.models.load import Found
    from tunesmith.training.job import Ready

SUBJECT = "dataset"


class MemoryConfig(Config):
    """How the run deals with memory."""

    checkpointing: Literal["auto", "on", "off"] = "auto"
    """Recompute activations in the backward pass: less memory, more time. auto does it only where the plan needs it."""
    exceed: Literal["refuse", "warn"] = "refuse"
    """What to do when the plan does not fit this machine."""
    limit_bytes: Annotated[int, Field(ge=1)] | None = None
    """Memory the run may take; null means what is free now."""
    activation_cache: Literal["auto", "on", "off"] = "auto"
    """Compute the front layers that train nothing once and read what they made from disk in later epochs, evaluations and
    runs. auto does it where a quarter of the layers or more train nothing and rows are read more than once; on fails
    where it is not possible."""


class TrainConfig(Config):
    """A training run."""

    model: str
    """The base model: embedded, a folder, hf:ID or ms:ID."""
    dataset: Source
    """A prepared Dataset folder, or rows that are prepared on the way."""
    cutoff: Annotated[int, Field(ge=8)] = 1024
    """Longest row in tokens (of rows that are prepared on the way)."""
    method: Method = Lora()
    """How weights may change."""
    objective: Objective = Sft()
    """What is optimised."""
    batch: BatchConfig = BatchConfig()
    """Rows a step, in each process."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer and schedule."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic: auto takes bf16 where the processor has it. Trained weights are kept in fp32 in any case."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Held-out evaluation while training."""
    diagnosis: DiagnosisConfig = DiagnosisConfig()
    """What is looked for while training, and what a finding leads to."""
    save: SaveConfig = SaveConfig()
    """Checkpoints."""
    memory: MemoryConfig = MemoryConfig()
    """Memory."""
    devices: DevicesConfig = DevicesConfig()
    """Processes."""
    track: Annotated[tuple[TrackerName, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)] = ()
    """Hand every number on to tensorboard, wandb, swanlab, trackio or mlflow as well: one word or a list. They keep it in
    the run folder unless their own environment variables send it elsewhere."""
    seed: Seed = 42
    """Decides held-out rows, order of rows, initial adapters and dropout."""


def preview(config: TrainConfig) -> str:
    """What would happen, in words."""
    length = f"{config.optimizer.steps} steps" if config.optimizer.steps else f"{config.optimizer.epochs:g} epochs"
    rate, schedule = config.optimizer.learning_rate, config.optimizer.schedule
    said = {None: "as is usual", "auto": "auto"}.get(rate) or f"{rate:g}"
    return (
        f"train {config.model} by {config.method.kind} ({config.objective.kind}) on {', '.join(config.dataset.path)}: "
        f"{length} of {config.batch.rows} x {config.batch.accumulate} rows, learning rate "
        f"{said} ({schedule}), precision {choose_precision(config)}; "
        f"evaluate every {config.evaluation.every_steps} steps, save every {config.save.every_steps}"
    )


def choose_precision(config: Any) -> Literal["fp32", "bf16"]:
    """The precision to train in; `config` is train's or plan's."""
    from tunesmith.core.hardware import probe

    if config.precision == "auto":
        return "bf16" if probe().native_bf16 else "fp32"
    return config.precision


def run(config: TrainConfig, run: Run) -> Training | HostCommands:
    """Prepare, plan, train. A run folder that holds checkpoints already is continued.

    Many processes are started on this host; of several hosts the commands are said.
    Raises DataError, ModelError or CapacityError in one line, and Paused after SIGTERM or Ctrl-C; what was saved before
    stays whole. A replay that has another loss series than its run leaves a ProofError in `run.unproven`.
    """
    from tunesmith.core.hardware import probe
    from tunesmith.models.load import identity
    from tunesmith.models.shape import read_shape
    from tunesmith.training.depths import check_depth, settle_depth
    from tunesmith.training.job import Ready
    from tunesmith.training.lock import make_lock, note_choices, recall, settle
    from tunesmith.training.rates import check_rate, settle_rate, with_usual

    asked, config = config, recall(run, config)
    check_optimizer(config.optimizer, probe().device)
    check_trackers(config.track)
    check_companions(config.devices, config.method.kind, config.objective.kind, config.optimizer.kind)
    if isinstance(config.objective, Ppo | Grpo):
        check_rewards(config.objective.reward)
    device = probe().device
    if device == "cuda" and not config.devices.hosts:
        check_device(device, run)
    check_devices(config.devices, device)
    check_rate(config)
    check_depth(config)
    found, tokenizer = _find(config)
    config = with_usual(config, read_shape(found.base), run)
    dataset, precision = _dataset(config, tokenizer, run), choose_precision(config)
    check_patience(config.evaluation, dataset.held_out_rows)

    def ready_for(wish: TrainConfig) -> Ready:
        return Ready(found, tokenizer, dataset, _planned(wish, found, dataset, precision)[0])

    config = settle_depth(config, ready_for, run)
    plan, devices = _plan(config, found, dataset, precision, run)
    config = settle_rate(config, Ready(found, tokenizer, dataset, plan), run)
    lock = make_lock(config, dataset, identity(found), seed=config.seed, precision=precision)
    settle(run, config, lock)
    note_choices(run, asked, config)
    if config.devices.kind != "one":
        decided = config.model_copy(update={"devices": devices})
        told = {"config": decided.model_dump(mode="json"), "plan": asdict(plan), "dataset": dataset.dataset.resolve()}
        return launch(devices, run, told)
    made = _train(config, run, Ready(found, tokenizer, dataset, plan), ALONE)
    assert made
    return made


def work(config: TrainConfig, run: Run, orders: dict[str, Any], team: Team) -> Training | None:
    """The part of one process of many in a run that `run` has prepared; the first one returns what was made."""
    from tunesmith.core.artifacts import MemoryPlan
    from tunesmith.data.dataset import open_dataset
    from tunesmith.training.job import Ready

    dataset = of_kind(config, open_dataset(Path(orders["dataset"])))
    return _train(config, run, Ready(*_find(config), dataset, MemoryPlan(**orders["plan"])), team)


def _find(config: TrainConfig) -> tuple[Found, Any]:
    from tunesmith.models.load import as_base, find, load_tokenizer

    found = find(config.model)
    if found.gguf:
        raise ModelError(
            f"model: {config.model}", "is a GGUF, which cannot be trained", do="Train the model it came from"
        )
    return as_base(found), load_tokenizer(found)


def _train(config: TrainConfig, run: Run, ready: Ready, team: Team) -> Training | None:
    from tunesmith.data.dataset import SPLITS, Rows
    from tunesmith.training.job import load_for, make_job
    from tunesmith.training.loop import train

    check_device(ready.plan.device, run)
    splits, started = {split: Rows(ready.dataset.dataset, split) for split in SPLITS}, time.time()
    with team.first_alone() if config.objective.uses_reference else nullcontext():  # what it computes, the others find
        model = load_for(config, ready, splits, run)
    if team.is_first:
        run.event("loaded", seconds=round(time.time() - started, 3))
    count_peak_anew()  # pages of the weight files that were read belong to the system's cache
    job = make_job(config, ready, model, splits, team, run)
    with tracked(run, config, config.track if team.is_first else ()):
        outcome = train(job, run, resume=run.folder.joinpath("checkpoints").is_dir())
    return _finish(config, run, outcome, ready, team) if team.is_first else None


def _dataset(config: TrainConfig, tokenizer: Any, run: Run) -> Dataset:
    """Open the prepared Dataset, or prepare raw rows into `<run>/dataset` (a resumed run has it there)."""
    from tunesmith.data.dataset import dataset_folder, open_dataset, prepared_folder
    from tunesmith.data.kept import prepare_rows
    from tunesmith.data.prepare import Split
    from tunesmith.data.render import template_fingerprint
    from tunesmith.verbs.prepare import tell

    folder = prepared_folder(config) or dataset_folder(str(run.folder))
    if folder is None:
        split = Split(config.evaluation.share, config.seed)
        made = prepare_rows(
            config.dataset, tokenizer, run.folder / "dataset", cutoff=config.cutoff, split=split, said=run.say
        )
        tell(made, run)
        return of_kind(config, made)
    dataset = open_dataset(folder)
    if dataset.template_sha256 != template_fingerprint(tokenizer):
        raise DataError(str(folder), f"was prepared for another model than {config.model!r}", do="Prepare it again")
    if not dataset.train_rows:
        raise DataError(str(folder), "holds no rows to train on")
    return of_kind(config, dataset)


def of_kind(config: Any, dataset: Dataset) -> Dataset:
    """The dataset; raises DataError where the objective of `config` (train's or plan's) takes rows of another kind."""
    if dataset.kind not in config.objective.ROWS:
        raise DataError(
            ", ".join(config.dataset.path),
            f"objective {config.objective.kind} takes {' or '.join(config.objective.ROWS)} rows, these are {dataset.kind} rows "
            f"({dataset.format})", do="Choose another --objective.kind or --dataset.format",
        )  # fmt: skip
    return dataset


def _plan(
    config: TrainConfig, found: Found, dataset: Dataset, precision: Literal["fp32", "bf16"], run: Run
) -> tuple[MemoryPlan, DevicesConfig]:
    """Print the memory plan, and decide what the devices leave open; refuse what cannot fit unless the config says otherwise."""
    from tunesmith.data.dataset import Rows
    from tunesmith.models.shape import read_shape
    from tunesmith.planning.table import plan_lines

    check_context(config, read_shape(found.base), found.base, Rows(dataset.dataset, "train"), run)
    plan, devices, reasons = _planned(config, found, dataset, precision)
    for line in [*plan_lines(plan), *reasons]:
        run.say(line)
    if not plan.fits and config.memory.exceed == "refuse":
        raise CapacityError(
            "memory", f"the run needs about {plan.total_bytes / 2**30:.2f} GiB",
            got=f"{plan.available_bytes / 2**30:.2f} GiB free",
            do=plan.advice or "Nothing small makes it fit; --memory.exceed warn tries all the same",
        )  # fmt: skip
    if not plan.fits:
        run.warn("the plan does not fit this machine; trying all the same, as the config says")
    return plan, devices


def _planned(
    config: TrainConfig, found: Found, dataset: Dataset, precision: Literal["fp32", "bf16"]
) -> tuple[MemoryPlan, DevicesConfig, list[str]]:
    from tunesmith.core.hardware import probe
    from tunesmith.data.dataset import Rows
    from tunesmith.models.shape import read_shape
    from tunesmith.planning.memory import heaviest
    from tunesmith.training.passes import wishes_of

    shape = read_shape(found.base)
    wishes = wishes_of(config, shape, Rows(dataset.dataset, "train"), precision)
    return plan_devices(shape, heaviest(shape, wishes, probe()), config.devices)


def _finish(config: TrainConfig, run: Run, outcome: Any, ready: Ready, team: Team) -> Training:
    from tunesmith.core.artifacts import Training
    from tunesmith.training.chart import charts_of_trials, draw_losses
    from tunesmith.training.checkpoint import folder_of
    from tunesmith.training.loop import count_steps, summarize
    from tunesmith.training.replay import conclude

    dataset, plan, seconds = ready.dataset, ready.plan, time.time() - run.started
    position, keep_best = outcome.position, config.evaluation.keep_best
    best = position.best_step if keep_best and position.best_step else position.step
    loss = position.best_loss if keep_best and position.best_loss is not None else outcome.held_out_loss
    scores = {"held_out_loss": loss, "base_held_out_loss": outcome.base_loss}
    if isinstance(config.objective, Ppo | Grpo):
        turned = {name.replace("loss", "reward"): None if value is None else -value for name, value in scores.items()}
        scores = {**dict.fromkeys(scores), **turned}
    made = Training(
        checkpoint=folder_of(run.folder, best), steps=position.step, **scores,
        perplexity=_perplexity(config, loss),
        seconds=round(seconds, 2), predicted_memory_bytes=plan.total_bytes,
        trainable_parameters=plan.trainable_parameters, parameters=plan.parameters, dataset=dataset.dataset,
        precision=plan.precision, stopped_early=outcome.stopped_early, charts=[*draw_losses(run), *charts_of_trials(run)],
        findings=[event["name"] for event in run.events() if event["event"] == "finding"],
        replay=conclude(run, run.replay_of) if run.replay_of else None, **summarize(outcome, run, count_steps(dataset.train_rows, team.batch(config.batch), config.optimizer)[0]),
    )  # fmt: skip
    share = made.peak_memory_bytes / made.predicted_memory_bytes
    run.say(f"memory    peak {made.peak_memory_bytes / 2**30:.2f} GiB, {share:.0%} of the plan")
    run.say(
        f"done      {made.steps} steps in {made.seconds:.0f} s, {made.tokens_per_second:.0f} tokens/s, {made.checkpoint}"
    )
    return made


def _perplexity(config: TrainConfig, loss: float | None) -> float | None:
    """exp(loss), where the loss is in nats a token and the number is one that can be written down."""
    import math

    largest = math.log(sys.float_info.max)
    return math.exp(loss) if loss is not None and config.objective.NATS_A_TOKEN and loss < largest else None
