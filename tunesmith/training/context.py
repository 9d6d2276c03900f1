"""Whether rows fit into what a model can read at once. Knows no batches."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from tunesmith.core import files
from tunesmith.core.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from tunesmith.core.run import Run
    from tunesmith.data.dataset import Rows
    from tunesmith.models.shape import Shape


def check_context(config: Any, shape: Shape, base: Path, rows: Rows, run: Run) -> None:
    """Hold rows, with the virtual tokens before them and the answers drawn behind them, against the model's context.

    `config` is train's, `base` the folder of the weights. Raises DataError where a model with learned positions (GPT-2) has
    none for a token; one with rotary positions reads past its context, only worse, which is said.
    """
    context = context_of(base)
    before = getattr(config.method, "tokens", 0)
    drawn = getattr(config.objective, "answer_tokens", 0)
    longest = before + _longest(rows, context - before, drawn)
    if longest <= context:
        return
    what = f"{longest} tokens with virtual ones and answers, and the model reads {context}"
    do = (
        "Lower --objective.answer_tokens, or --cutoff and prepare again"
        if drawn
        else "Lower --cutoff and prepare again"
    )
    if shape.positions:
        raise DataError("dataset", f"the longest row has {what}", do=do)
    run.warn(f"the longest row has {what}: past that it was never trained. {do}")


def context_of(base: Path) -> int:
    """Tokens that the model in a folder was made to read at once; more than any row has where its config does not say."""
    config = files.read_json(base / "config.json")
    return config.get("max_position_embeddings") or config.get("n_positions") or sys.maxsize


def _longest(rows: Rows, room: int, drawn: int) -> int:
    """Tokens of the longest row; of the longest prompt with its longest answer where answers are drawn."""
    if not drawn:
        return max(rows.lengths)
    from tunesmith.training.rollout import question

    wide = [number for number, length in enumerate(rows.lengths) if length + drawn > room]
    return max((len(question(rows[number])) + drawn for number in wide), default=0)
