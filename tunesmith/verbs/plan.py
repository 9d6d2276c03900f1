"""Say from config.json alone what a training run needs, whether it fits, and what to change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from tunesmith.core.config import Config, Seed
from tunesmith.data.batch import BatchConfig
from tunesmith.data.source import Source
from tunesmith.models.methods import Freeze, Full, Lora, Method, Qlora
from tunesmith.planning.optimizers import OptimizerKind
from tunesmith.training.distributed import DevicesConfig, check_companions, plan_devices
from tunesmith.training.objectives import Grpo, Objective, Ppo, Sft
from tunesmith.training.passes import batch_of, shared_once, wishes_of
from tunesmith.training.rewards import check_rewards

if TYPE_CHECKING:
    from tunesmith.core.artifacts import MemoryPlan
    from tunesmith.core.hardware import Machine
    from tunesmith.core.run import Run
    from tunesmith.data.dataset import Rows
    from tunesmith.models.shape import Shape
    from tunesmith.planning.memory import Wish

SUBJECT = "model"
ANY_RATE = 1e-5
"""Of a model that is thrown away."""
BESIDE: tuple[Method, ...] = (Qlora(), Lora(), Freeze(), Full())
"""What is planned beside the wish."""


class LimitConfig(Config):
    """What the run may take."""

    checkpointing: Literal["auto", "on", "off"] = "auto"
    """Recompute activations in the backward pass: less memory, more time. auto does it only where it is needed to fit."""
    limit_bytes: Annotated[int, Field(ge=1)] | None = None
    """Memory the run may take; null means what is free now."""


class RuleConfig(Config):
    """What of the optimizer takes memory."""

    kind: OptimizerKind = "adamw"
    """The rule by which weights move."""


class PlanConfig(Config):
    """A training run to be planned; options as in train."""

    model: str
    """The base model: embedded, a folder or config.json (weights are not needed), hf:ID or ms:ID."""
    dataset: Source | None = None
    """A prepared Dataset folder, or rows: their longest batch is planned and the time of an epoch is measured."""
    cutoff: Annotated[int, Field(ge=8)] = 1024
    """Longest row in tokens; where no dataset is given, the length that is planned."""
    method: Method = Lora()
    """How weights may change."""
    objective: Objective = Sft()
    """What is optimised: pairs are two rows, answers that are drawn are planned whole, reward models are counted."""
    batch: BatchConfig = BatchConfig()
    """Rows a step, in each process."""
    optimizer: RuleConfig = RuleConfig()
    """Optimizer."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic: auto takes bf16 where the processor has it."""
    memory: LimitConfig = LimitConfig()
    """Memory, of one process."""
    devices: DevicesConfig = DevicesConfig()
    """Processes; where their stage is left open, the first that fits is named. The time of an epoch is measured in one."""
    calibration_seconds: Annotated[float, Field(ge=0)] = 5.0
    """Train on a few batches for about this long to measure the time of an epoch (needs dataset and weights); 0 does not."""
    seed: Seed = 42
    """Decides the order of rows, and with it which rows make a batch."""


def preview(config: PlanConfig) -> str:
    """What would happen, in words."""
    rows = f"the rows of {', '.join(config.dataset.path)}" if config.dataset else f"rows of {config.cutoff} tokens"
    return (
        f"plan {config.method.kind} training ({config.objective.kind}) of {config.model} on {rows}, {config.batch.rows} x "
        f"{config.batch.accumulate} a step, precision {config.precision}"
    )


def run(config: PlanConfig, run: Run) -> MemoryPlan:
    """Plan, print, compare. Raises ModelError for a model whose parts are not known, DataError for unusable rows."""
    from tunesmith.core.hardware import probe
    from tunesmith.data.dataset import Rows
    from tunesmith.models.shape import read_shape
    from tunesmith.planning.memory import heaviest
    from tunesmith.planning.table import compare_lines, plan_lines
    from tunesmith.verbs.train import choose_precision

    check_companions(config.devices, config.method.kind, config.objective.kind, config.optimizer.kind)
    if isinstance(config.objective, Ppo | Grpo):
        check_rewards(config.objective.reward)
    machine, source = probe(), _config_of(config.model)
    shape = read_shape(source)
    folder = _dataset(config, source, run) if config.dataset else None
    wishes = wishes_of(config, shape, Rows(folder, "train") if folder else None, choose_precision(config))
    wish = heaviest(shape, wishes, machine)
    plan, _, reasons = plan_devices(shape, wish, config.devices)
    is_one = config.devices.kind == "one"
    if folder and plan.fits and is_one:
        first, further = _measure(config, source, folder, plan, run) or (None, None)
        plan = replace(plan, seconds_per_epoch=first, seconds_per_further_epoch=further)
    for line in [*plan_lines(plan), *reasons]:
        run.say(line)
    if not is_one:
        return plan
    run.say("side by side")
    for line in compare_lines(_alternatives(shape, wishes, machine)):
        run.say(line)
    return plan


def _config_of(model: str) -> Path:
    """The folder or file with config.json; from a hub only config.json is fetched."""
    from tunesmith.core import hub
    from tunesmith.models.load import find

    path = Path(model)
    if path.is_file() and path.suffix == ".json":
        return path
    if path.is_dir() and (path / "config.json").is_file():
        return path
    if model == hub.EMBEDDED or path.exists():
        return find(model).base
    return hub.locate(model, only_config=True)


def _dataset(config: PlanConfig, source: Path, run: Run) -> Path:
    """The prepared Dataset, or raw rows prepared into `<run>/dataset`."""
    from tunesmith.core.errors import ModelError
    from tunesmith.data.dataset import open_dataset, prepared_folder
    from tunesmith.verbs.train import of_kind

    assert config.dataset
    folder = prepared_folder(config)
    if folder:
        return of_kind(config, open_dataset(folder)).dataset
    if not source.is_dir() or not any(source.glob("tokenizer*")):
        raise ModelError(
            str(source), "has no tokenizer for these rows", do="Leave --dataset out, or give a whole model"
        )
    from tunesmith.data.kept import prepare_rows
    from tunesmith.data.prepare import Split
    from tunesmith.models.load import Found, load_tokenizer

    tokenizer, split = load_tokenizer(Found(config.model, source)), Split(0.1, config.seed)
    made = prepare_rows(
        config.dataset, tokenizer, run.folder / "dataset", cutoff=config.cutoff, split=split, said=run.say
    )
    return of_kind(config, made).dataset


def _alternatives(shape: Shape, wishes: Sequence[Wish], machine: Machine) -> list[MemoryPlan]:
    """The wished method with its own options, then the others, in both precisions."""
    from tunesmith.planning.memory import heaviest, plan_memory

    wished = wishes[0].method
    others: list[Method] = [method for method in BESIDE if method.kind != wished.kind]
    return [
        plan_memory(
            shape, heaviest(shape, [replace(it, method=method, precision=precision) for it in wishes], machine), machine
        )
        for method in (wished, *others)
        for precision in ("fp32", "bf16")
    ]


def _measure(config: PlanConfig, source: Path, folder: Path, plan: MemoryPlan, run: Run) -> tuple[float, float] | None:
    """Seconds of the first epoch and of a further one from a few real steps; None without weights or when calibration is off."""
    from tunesmith.data.batch import order_steps
    from tunesmith.data.dataset import Rows
    from tunesmith.models.shape import read_shape
    from tunesmith.planning.activations import joins
    from tunesmith.planning.time import seconds_per_epoch
    from tunesmith.training.distributed import check_device

    if not config.calibration_seconds:
        return None
    if isinstance(config.objective, Ppo | Grpo):
        run.say("answers are drawn while training: the time of an epoch is not measured")
        return None
    if not source.is_dir() or not any(source.glob("*.safetensors")):
        run.say("no weights here: the time of an epoch is not measured")
        return None
    check_device(plan.device, run)
    rows, shape = Rows(folder, "train"), read_shape(source)
    shared = shared_once(config, shape, rows)
    steps = order_steps(rows.lengths, batch_of(config, plan.device, rows.each), config.seed, 0, shared)
    joined = lambda lengths: sum(lengths) - (len(lengths) - 1) * shared  # noqa: E731
    size = joined if joins(shape, config.method.footprint(shape)) else lambda lengths: len(lengths) * max(lengths)
    tokens = [sum(size([rows.lengths[n] for n in batch]) for batch in step) for step in steps]
    run.say(f"measuring a few of {len(steps)} steps for about {config.calibration_seconds:g} s")
    make = _stepper(config, source, rows, steps, plan)
    return seconds_per_epoch(make, tokens, config.calibration_seconds)


def _stepper(config: PlanConfig, source: Path, rows: Rows, steps: list[list[list[int]]], plan: MemoryPlan) -> Any:
    """step number -> seconds of that training step in the first epoch and in a further one; the model is thrown away."""
    import time

    import torch

    from tunesmith.data.batch import collate
    from tunesmith.models.head import label_losses
    from tunesmith.models.lean import make_lean
    from tunesmith.models.load import Found
    from tunesmith.models.recompute import recompute_activations
    from tunesmith.models.shape import read_shape
    from tunesmith.models.split import states_before
    from tunesmith.training.activation_cache import spared_layers
    from tunesmith.training.optimizer import OptimizerConfig, make_optimizer

    bf16, device = plan.precision == "bf16", torch.device(plan.device)
    model = config.method.put(config.method.load(Found(config.model, source), plan.precision)).to(device).train()
    make_lean(model)
    if plan.checkpointing:
        recompute_activations(model)
    optimizer = make_optimizer(model, OptimizerConfig(learning_rate=ANY_RATE), config.method.rate_factor)
    spared = spared_layers(config, model, read_shape(source))

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def step(number: int) -> tuple[float, float]:
        started, once = now(), 0.0
        for batch in steps[number]:
            tensors = {name: value.to(device) for name, value in collate(rows, batch, 0).items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                if spared:
                    begun = now()
                    states = states_before(model, tensors, spared)
                    tensors |= {"states": states, "entry": torch.full((len(states),), spared)}
                    once += now() - begun
                loss = label_losses(model, tensors).mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds = now() - started
        return seconds, seconds - once

    return step
