"""Say from config.json alone what a training run needs, whether it fits, and what to change."""

from __future__ import annotations

import math
from collections import Counter
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
from tunesmith.training.distributed import DevicesConfig, Team, check_companions, plan_devices
from tunesmith.training.objectives import Grpo, Objective, Ppo, Sft
from tunesmith.training.passes import batch_of
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


def wishes_of(config: Any, shape: Shape, rows: Rows | None, precision: Literal["fp32", "bf16"]) -> list[Wish]:
    """What the passes of a run take memory for, of which the heaviest counts; `config` is train's or plan's.

    Without rows each has as many tokens as the cutoff. Raises ModelError for a reward model that is none.
    """
    from tunesmith.core.hardware import probe
    from tunesmith.planning.activations import joins
    from tunesmith.planning.memory import Wish

    objective, each = config.objective, rows.each if rows else 1
    if not rows and set(objective.ROWS) <= {"preference", "feedback"}:
        each = 2
    batch = batch_of(config, probe().device, each)
    if rows:
        team = Team(processes=config.devices.total)
        passes = largest_passes(rows, batch, team, config.seed, joined=joins(shape, config.method.footprint(shape)))
    else:
        at_once = min(batch.rows, max(1, (batch.tokens or config.cutoff * batch.rows) // config.cutoff))
        often = batch.accumulate * math.ceil(batch.rows / at_once)
        passes = [{"tokens": config.cutoff, "rows": at_once * each, "accumulate": often}]
    if isinstance(objective, Ppo | Grpo):
        drawn = _drawn(objective, max(rows.lengths) if rows else config.cutoff, batch.rows, precision)
        passes = [one | drawn for one in passes]
    if objective.kind == "reward":
        passes = [{**one, "labelled": 0} for one in passes]  # its head gives one number, and no words
    return [
        Wish(
            model=config.model, method=config.method, precision=precision,
            each=each, step_rows=batch.rows * batch.accumulate, limit_bytes=config.memory.limit_bytes,
            checkpointing={"on": True, "off": False, "auto": "auto"}[config.memory.checkpointing],
            optimizer=config.optimizer.kind, **one,
        )
        for one in passes
    ]  # fmt: skip


def _drawn(objective: Ppo | Grpo, prompt: int, rows: int, precision: Literal["fp32", "bf16"]) -> dict[str, Any]:
    """What a Wish needs to know of answers that are drawn behind prompts of at most `prompt` tokens, and scored."""
    from tunesmith.training.rewards import held_bytes

    return {
        "rows": rows, "tokens": prompt + objective.answer_tokens, "lengths": (), "labelled": rows * objective.answer_tokens,
        "reward_bytes": held_bytes(objective.reward, precision), "has_critic": objective.has_critic,
    }  # fmt: skip


def largest_passes(
    rows: Rows, batch: BatchConfig, team: Team, seed: int, *, joined: bool = True, epochs: int = 3
) -> list[dict[str, Any]]:
    """What a Wish needs to know of passes in the first epochs: of those that begin a step, and of those that come later in
    one, through which a process holds the gradients of the passes before. `batch` is that of one process.

    `rows`, `tokens` and `lengths` of the largest of either (its sequences, the longest of them, each; where rows are
    padded the one with the most places, otherwise the one with the most tokens), `labelled`: the most positions whose logits
    one of them computes (trained tokens where rows are joined, otherwise rows x columns with a label), `accumulate`: how many
    passes a step has up to one of them, and `shared`: the tokens at the beginning that are the same in all rows and come
    before any label.
    """
    import numpy as np

    from tunesmith.data.batch import order_steps, width_of

    largest, labelled = dict[bool, list[int]](), Counter[bool]()
    accumulate, shared = Counter[bool](), _shared(rows)
    for epoch in range(epochs):
        for step in order_steps(rows.lengths, team.batch(batch), seed, epoch):
            for place, numbers in enumerate(step):
                later = place >= team.processes
                columns = np.zeros(max(rows.lengths[number] for number in numbers), dtype=bool)
                for sequence in (sequence for number in numbers for sequence in rows.sequences(number)):
                    columns[: len(sequence.ids)] |= sequence.trained
                trained = sum(rows.labels[number] for number in numbers)
                computed = trained if joined else int(columns[1:].sum()) * len(numbers) * rows.each
                labelled[later] = max(labelled[later], computed)
                accumulate[later] = max(accumulate[later], place // team.processes + 1)
                here = sorted(len(sequence.ids) for number in numbers for sequence in rows.sequences(number))
                size = lambda it: (sum(it) if joined else len(it) * width_of(it), it[-1])  # noqa: E731
                largest[later] = max(largest.get(later, here), here, key=size)
    return [
        {
            "rows": len(lengths), "tokens": width_of(lengths), "lengths": tuple(lengths), "labelled": labelled[later],
            "accumulate": accumulate[later], "shared": shared,
        }
        for later, lengths in largest.items()
    ]  # fmt: skip


def _shared(rows: Rows) -> int:
    """Tokens with which all rows begin, one less than where they differ or a label stands (as models/joined.py has it)."""
    import numpy as np

    first, shared = rows[0], min(len(row.ids) for row in rows)
    for row in rows:
        differs = (row.ids[:shared] != first.ids[:shared]) | row.trained[:shared]
        shared = int(np.argmax(differs)) if differs.any() else shared
    return max(0, shared - 1)


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
    rows = Rows(folder, "train")
    steps = order_steps(rows.lengths, batch_of(config, plan.device, rows.each), config.seed, 0)
    is_joined = joins(shape := read_shape(source), config.method.footprint(shape))
    size = sum if is_joined else lambda lengths: len(lengths) * max(lengths)
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
