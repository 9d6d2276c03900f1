"""Held-out scores: the loss of the objective, and its other numbers, over all held-out rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tunesmith.core.config import Config
from tunesmith.core.errors import UsageError
from tunesmith.core.hardware import give_back_memory
from tunesmith.training.distributed import ALONE, Team

if TYPE_CHECKING:
    import torch

    from tunesmith.training.objectives import Objective


COUNT = " count"
"""Beside the sums; no objective has a number of this name."""


class EvaluationConfig(Config):
    """When the held-out rows are scored, and what follows from it."""

    share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the rows held out where the dataset is not prepared yet."""
    every_steps: Annotated[int, Field(ge=1)] = 50
    """Optimizer steps between two evaluations; the first and the last step are always followed by one."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many evaluations without a better held-out loss; null never stops early. Needs held-out rows."""
    keep_best: bool = True
    """Use the checkpoint with the lowest held-out loss; false uses the last one."""


def check_patience(wish: EvaluationConfig, held_out_rows: int) -> None:
    """Raise UsageError where a run should stop by a loss that nobody measures."""
    if wish.patience is not None and not held_out_rows:
        raise UsageError(
            "evaluation.patience", "no rows are held out, so nothing says when to stop", got=wish.patience,
            do="Hold some out (--evaluation.share 0.1), or leave it out",
        )  # fmt: skip


@contextmanager
def resting(model: Any) -> Iterator[None]:
    """The model in evaluation mode for a while; what the steps before it have freed is given back first."""
    was_training = model.training
    give_back_memory()
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def held_out_scores(
    objective: Objective, model: Any, passes: list[list[int]],
    ready: Callable[[list[int]], dict[str, torch.Tensor]], team: Team = ALONE,
) -> dict[str, float]:  # fmt: skip
    """`held_out_loss` and the objective's other numbers (`held_out_...`), means over all that it counts in the rows.

    `passes` are the numbers of rows that go through the model together, and `ready` makes their batch where the model is.
    Each process of a team scores its share, and all get the same numbers.
    """
    import torch

    sums = Counter[str]()
    with resting(model), torch.no_grad():
        for numbers, counts in team.shares(passes):
            tensors = ready(numbers)
            loss, seen = objective.loss(model, tensors)
            found = {"loss": loss.item(), **seen, COUNT: objective.count(tensors)}
            sums.update({name: value * counts for name, value in found.items()})
    whole = team.total(sums)
    return {f"held_out_{name}": value / max(whole[COUNT], 1) for name, value in whole.items() if name != COUNT}
