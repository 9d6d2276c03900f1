"""Render rows through the model's chat template into a Dataset with a ledger of every row."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tunesmith.core.config import Config, Seed
from tunesmith.data.source import Source

if TYPE_CHECKING:
    from tunesmith.core.artifacts import Dataset
    from tunesmith.core.run import Run

SUBJECT = "dataset"


class PrepareConfig(Config):
    """What to render, for which model."""

    model: str
    """The model whose tokenizer and chat template are used: embedded, a folder, hf:ID or ms:ID."""
    dataset: Source
    """Rows to prepare."""
    cutoff: Annotated[int, Field(ge=8)] = 1024
    """Longest row in tokens."""
    share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the rows held out for evaluation; rows with the same prompt stay on one side."""
    seed: Seed = 42
    """Decides which rows are held out."""
    show: Annotated[int, Field(ge=0)] = 0
    """Print this many rows with the trained tokens coloured."""


def preview(config: PrepareConfig) -> str:
    """What would happen, in words."""
    held = (
        f"the rows of {', '.join(config.dataset.held_out)}"
        if config.dataset.held_out
        else f"{config.share:.0%} of the rows"
    )
    return (
        f"read {', '.join(config.dataset.path)} ({config.dataset.format}), render for {config.model} at most "
        f"{config.cutoff} tokens a row ({config.dataset.overlong} what is longer), hold out {held}, "
        f"stop when more than {config.dataset.max_lost:.1%} would be lost"
    )


def run(config: PrepareConfig, run: Run) -> Dataset:
    """Write the Dataset into `<run>/dataset`. Raises DataError or ModelError in one line."""
    from tunesmith.data.prepare import Split, write_dataset
    from tunesmith.models.load import find, load_tokenizer

    tokenizer = load_tokenizer(find(config.model))
    made = write_dataset(
        config.dataset, tokenizer, run.folder / "dataset", cutoff=config.cutoff,
        split=Split(config.share, config.seed), said=run.say,
    )  # fmt: skip
    tell(made, run)
    if config.show:
        show_rows(made.dataset, tokenizer, config.show, run)
    return made


def tell(made: Dataset, run: Run) -> None:
    """The totals of the ledger on screen and in events.jsonl."""
    run.event("prepared", rows=made.rows, kept=made.kept, truncated=made.truncated, dropped=made.dropped)
    run.say(f"rows      {made.rows} read: {made.kept} kept, {made.truncated} truncated, {made.dropped} dropped")
    for reason, count in made.reasons.items():
        run.warn(f"{count} dropped: {reason.rstrip('.')}")
    if made.truncated:
        run.warn(f"{made.truncated} truncated at their end")
    if made.end_token_lost:
        run.warn(f"{made.end_token_lost} kept rows do not train the token that ends the answer")
    run.say(f"split     {made.train_rows} train, {made.held_out_rows} held out")
    run.say(f"tokens    {made.tokens} in all, {made.trained_tokens} trained, longest row {made.longest}")
    run.say(f"ledger    {made.dataset / 'ledger.jsonl'}")


def show_rows(folder: Path, tokenizer: Any, count: int, run: Run) -> None:
    """Print the first rows of the training split, trained tokens green, all others dim."""
    from rich.text import Text

    from tunesmith.data.dataset import Rows

    rows = Rows(folder, "train")
    for number in range(min(count, len(rows))):
        row, line = rows[number], Text()
        for is_trained, ids in _runs(row.ids.tolist(), row.trained.tolist()):
            line.append(tokenizer.decode(ids), style="green" if is_trained else "dim")
        run.say(f"--- row {number + 1}: {len(row.ids)} tokens, {int(row.trained.sum())} trained (green)")
        run.console.print(line)


def _runs(ids: list[int], trained: list[bool]) -> list[tuple[bool, list[int]]]:
    from itertools import groupby

    return [
        (flag, [token for _, token in group])
        for flag, group in groupby(zip(trained, ids, strict=True), key=lambda pair: pair[0])
    ]
