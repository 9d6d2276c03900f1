"""Rows into batches: which rows stand together in which step, and the padded tensors. Knows no model."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from tunesmith.core.config import Config
from tunesmith.core.examples import IGNORED

if TYPE_CHECKING:
    import torch

    from tunesmith.data.dataset import Few, Rows, TokenRow
    from tunesmith.data.render import Rendered


class BatchConfig(Config):
    """How many rows make one optimizer step in one process: rows x accumulate."""

    rows: Annotated[int, Field(ge=1)] = 8
    """Rows that go through the model together."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Batches whose gradients are added up before the weights move."""
    tokens: Literal["auto"] | Annotated[int, Field(ge=16)] | None = "auto"
    """Most tokens that go through the model together, what all rows begin with counted once: a batch of more goes in
    several passes, with the same gradient and less memory. A longer row goes alone. null: no limit; auto: 1536 on a CPU
    and no limit on a GPU. Objectives that compare the rows of a batch (kto) or draw answers (ppo, grpo) have none."""
    group_by_length: bool = False
    """Rows of like length make a step together. Saves time only where rows are padded (models whose rows are not joined), and
    costs quality: short rows and long rows then move the weights by turns."""


WIDTH_STEP = 4
"""Tokens; batches are padded to a multiple of it, so that few shapes come up (decision 005)."""


WINDOW = 16
"""Steps among which rows are sorted by length, where they are."""


def order_steps(
    lengths: Sequence[int], batch: BatchConfig, seed: int, epoch: int, shared: int = 0
) -> list[list[list[int]]]:
    """The row numbers of an epoch as steps of batches of rows; every row once, the same for the same arguments.

    Rows are shuffled, and the rows of one step (rows x accumulate) are drawn together; inside a step, with
    `group_by_length` inside windows of 16 steps that are shuffled again, rows of like length are put side by side so
    that padding stays small. The last step may be smaller than the others. Batches of more than `batch.tokens` tokens
    are cut, where that is a number; the first `shared` tokens of all rows count once in a pass. The first epoch begins
    with the largest batch: a run that has no room for it ends at once.
    """
    shuffle = random.Random(f"{seed}:{epoch}")  # noqa: S311 - an order, not a secret
    rows = list(range(len(lengths)))
    shuffle.shuffle(rows)
    per_step = batch.rows * batch.accumulate
    full = len(rows) - len(rows) % per_step
    steps: list[list[int]] = []
    window = per_step * (WINDOW if batch.group_by_length else 1)
    for start in range(0, full, window):
        near = sorted(rows[start : min(start + window, full)], key=lambda row: lengths[row])
        steps += [near[i : i + per_step] for i in range(0, len(near), per_step)]
    shuffle.shuffle(steps)
    if full < len(rows):
        steps.append(sorted(rows[full:], key=lambda row: lengths[row]))
    whole = [[step[i : i + batch.rows] for i in range(0, len(step), batch.rows)] for step in steps]
    if whole and not epoch:
        sizes = [max(sum(lengths[row] - shared for row in rows) for rows in step) for step in whole]
        heaviest = sizes.index(max(sizes))
        whole[0], whole[heaviest] = whole[heaviest], whole[0]
    return [[part for rows in step for part in in_passes(rows, lengths, batch.tokens, shared)] for step in whole]


def in_order(lengths: Sequence[int], batch: BatchConfig, shared: int = 0) -> list[list[int]]:
    """All rows once, those of like length together, in passes as `batch` cuts them while training."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    batches = [order[start : start + batch.rows] for start in range(0, len(order), batch.rows)]
    return [part for rows in batches for part in in_passes(rows, lengths, batch.tokens, shared)]


def in_passes(
    rows: list[int], lengths: Sequence[int], limit: int | Literal["auto"] | None, shared: int = 0
) -> list[list[int]]:
    """The rows in as few parts of about equally many tokens as keep to the limit; each counts the first `shared` once."""
    own = {row: lengths[row] - shared for row in rows}
    total = sum(own.values())
    if not isinstance(limit, int) or shared + total <= limit:
        return [rows]
    room = max(1, limit - shared)
    for count in range(math.ceil(total / room), len(rows)):
        parts, before = list[list[int]]([] for _ in range(count)), 0
        for row in rows:
            parts[int((before + own[row] / 2) * count / total)].append(row)
            before += own[row]
        if all(len(part) == 1 or sum(own[row] for row in part) <= room for part in parts):
            return [part for part in parts if part]
    return [[row] for row in rows]


def width_of(lengths: Iterable[int]) -> int:
    """Tokens of a batch whose rows have these lengths."""
    longest = max(lengths)
    return longest + -longest % WIDTH_STEP


def collate(rows: Rows | Few, numbers: Sequence[int], pad_token: int) -> dict[str, torch.Tensor]:
    """Pad the numbered rows on the right: input_ids, attention_mask, labels, each (B, T) int64, T a multiple of 4.

    Labels are the ids themselves (the model shifts), IGNORED where a token is not trained or is padding. B rows of two
    sequences make 2 B lines: all first ones, then all second ones. What rows carry beside tokens is (B,) or (2 B,).
    """
    chosen = [
        sequence for place in zip(*(rows.sequences(number) for number in numbers), strict=True) for sequence in place
    ]
    import torch

    extras = {name: torch.from_numpy(values[list(numbers)]) for name, values in rows.extras.items()}
    beside = {name: values.T.reshape(-1) if values.ndim > 1 else values for name, values in extras.items()}
    return {**pad_sequences(chosen, pad_token), **beside, **_states(chosen)}


def _states(chosen: Sequence[TokenRow]) -> dict[str, torch.Tensor]:
    """`states` (B, T, D) of rows that have them."""
    from torch.nn.functional import pad
    from torch.nn.utils.rnn import pad_sequence

    known = [row.states for row in chosen if row.states is not None]
    if not known:
        return {}
    padded = pad_sequence(known, batch_first=True)
    return {"states": pad(padded, (0, 0, 0, width_of(map(len, known)) - padded.shape[1]))}


def pad_sequences(chosen: Sequence[TokenRow | Rendered], pad_token: int) -> dict[str, torch.Tensor]:
    """The lines of a batch: input_ids, attention_mask, labels, each (B, T)."""
    import torch

    ids = torch.full((len(chosen), width_of(len(row.ids) for row in chosen)), pad_token, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for place, row in enumerate(chosen):
        length = len(row.ids)
        ids[place, :length] = torch.tensor(row.ids, dtype=torch.int64)
        mask[place, :length] = 1
        trained = torch.tensor(row.trained)
        labels[place, :length][trained] = ids[place, :length][trained]
    labels[:, 0] = IGNORED  # nothing stands before the first token to predict it from
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
