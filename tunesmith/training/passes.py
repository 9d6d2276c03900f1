"""What goes through the model at a time, and which of a run's passes take the most. Alike for a run and for its plan."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.core.errors import UsageError
from tunesmith.data.batch import BatchConfig
from tunesmith.training.distributed import Team
from tunesmith.training.objectives import Grpo, Ppo

if TYPE_CHECKING:
    from tunesmith.data.dataset import Few, Rows
    from tunesmith.models.shape import Shape
    from tunesmith.planning.memory import Wish

CPU_TOKENS = 1536
"""More at a time are hardly faster on a CPU, and need more memory (decision 008)."""
EPOCHS = 3
"""The first ones, in which the largest passes of a run are looked for."""
WHOLE = {"kto", "ppo", "grpo"}
"""Objectives that read the rows of a batch together, or draw rows of their own."""


def batch_of(config: Any, device: str, each: int = 1) -> BatchConfig:
    """The batch of a train's or plan's config with `tokens` decided; rows are of `each` sequences, of which the longest counts.

    Raises UsageError where a limit is asked for that the objective cannot keep.
    """
    batch, kind = config.batch, config.objective.kind
    if kind in WHOLE and isinstance(batch.tokens, int):
        what = f"objective {kind} reads the rows of a batch together"
        raise UsageError("batch.tokens", what, got=batch.tokens, do="Leave it out, and choose batch.rows")
    limit = (CPU_TOKENS if device == "cpu" else None) if batch.tokens == "auto" else batch.tokens
    limit = None if kind in WHOLE or limit is None else max(1, limit // each)
    return batch.model_copy(update={"tokens": limit})


def shared_once(config: Any, shape: Shape, rows: Rows | Few) -> int:
    """Tokens with which all of these rows begin, where a pass computes them once for all of its rows (models/joined.py), otherwise 0."""
    from tunesmith.models.head import is_worth_sharing
    from tunesmith.planning.activations import joins

    footprint = config.method.footprint(shape)
    drawn = shape.attention_dropout or footprint.dropout
    if not len(rows) or drawn or not _shares(config.objective) or not joins(shape, footprint):
        return 0
    return rows.shared if is_worth_sharing(rows.shared, max(rows.lengths)) else 0


def _shares(objective: Any) -> bool:
    """Whether the objective lets one row stand for all where they are alike: not with noise, nor where whole rows are scored."""
    return objective.kind != "reward" and not getattr(objective, "neftune_alpha", None)


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
        is_joined, once = joins(shape, config.method.footprint(shape)), shared_once(config, shape, rows)
        passes = largest_passes(rows, batch, team, config.seed, joined=is_joined, shared=once)
    else:
        at_once = min(batch.rows, max(1, (batch.tokens or config.cutoff * batch.rows) // config.cutoff))
        often = batch.accumulate * math.ceil(batch.rows / at_once)
        passes = [{"tokens": config.cutoff, "rows": at_once * each, "accumulate": often}]
    if isinstance(objective, Ppo | Grpo):
        drawn = _drawn(objective, max(rows.lengths) if rows else config.cutoff, batch.rows, precision)
        passes = [one | drawn for one in passes]
    if not _shares(objective):
        passes = [{**one, "shared": 0} for one in passes]
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
    rows: Rows, batch: BatchConfig, team: Team, seed: int, *, joined: bool = True, shared: int = 0
) -> list[dict[str, Any]]:
    """What a Wish needs to know of passes in the first epochs: of those that begin a step, and of those that come later in
    one, through which a process holds the gradients of the passes before. `batch` is that of one process, `shared` what its
    passes compute once.

    `rows`, `tokens` and `lengths` of the largest of either (its sequences, the longest of them, each): where rows are padded
    the one with the most places, otherwise the one with the most tokens and the one with the most where the beginning that
    all rows share counts once, if it is worth sharing. For all of a kind alike `labelled`: the most positions whose logits
    one of them computes (trained tokens where rows are joined, otherwise rows x columns with a label), `accumulate`: how many
    passes a step has up to one of them, and `shared`: the tokens at the beginning that are the same in all rows and come
    before any label.
    """
    import numpy as np

    from tunesmith.data.batch import order_steps, width_of
    from tunesmith.models.head import is_worth_sharing

    def size(left_out: int, lengths: tuple[int, ...]) -> tuple[int, int]:
        tokens = sum(lengths) if joined else len(lengths) * width_of(lengths)
        return tokens - left_out * len(lengths), lengths[-1]

    largest, labelled, accumulate = dict[tuple[bool, int], tuple[int, ...]](), Counter[bool](), Counter[bool]()
    ways = [0, rows.shared] if joined and is_worth_sharing(rows.shared, min(rows.lengths)) else [0]
    for epoch in range(EPOCHS):
        for step in order_steps(rows.lengths, team.batch(batch), seed, epoch, shared):
            for place, numbers in enumerate(step):
                later = place >= team.processes
                columns = np.zeros(max(rows.lengths[number] for number in numbers), dtype=bool)
                for sequence in (sequence for number in numbers for sequence in rows.sequences(number)):
                    columns[: len(sequence.ids)] |= sequence.trained
                trained = sum(rows.labels[number] for number in numbers)
                computed = trained if joined else int(columns[1:].sum()) * len(numbers) * rows.each
                labelled[later] = max(labelled[later], computed)
                accumulate[later] = max(accumulate[later], place // team.processes + 1)
                here = tuple(sorted(len(sequence.ids) for number in numbers for sequence in rows.sequences(number)))
                for left_out in ways:
                    known = largest.get((later, left_out), here)
                    largest[later, left_out] = max(known, here, key=partial(size, left_out))
    return [
        {
            "rows": len(lengths), "tokens": width_of(lengths), "lengths": lengths, "labelled": labelled[later],
            "accumulate": accumulate[later], "shared": rows.shared,
        }
        for later, lengths in dict.fromkeys((later, lengths) for (later, _), lengths in largest.items())
    ]  # fmt: skip
