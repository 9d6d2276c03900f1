"""An outcome in numbers and words: what the screen, the reports and evaluation.json share."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

from tunesmith.evaluation.answers import Score
from tunesmith.evaluation.compare import FEWEST_ROWS, Outcome
from tunesmith.evaluation.suite import Sheet


def numbers(outcome: Outcome) -> dict[str, Any]:
    """Scores, differences and how they were measured, as evaluation.json has them."""
    return {
        "facts": outcome.facts,
        **{side: {"model": sheet.model, "engine": sheet.engine, **sheet.values} for side, sheet in outcome.sides},
        "difference": {name: asdict(difference) for name, difference in outcome.differences.items()},
        "signatures": {score.metric: score.signature for score in outcome.tuned.scores},
    }


def table(outcome: Outcome) -> list[tuple[str, ...]]:
    """The numbers as cells: a header first; without a base only name and value."""
    numbers_of = [(score, name) for score in outcome.tuned.scores for name in score.values]
    if not outcome.base:
        return [("metric", "value"), *((label(name), _shown(score, name)) for score, name in numbers_of)]
    before = {score.metric: score for score in outcome.base.scores}
    rows: list[tuple[str, ...]] = [("metric", "base", "tuned", "difference", "95 % interval", "verdict")]
    for score, name in numbers_of:
        old, found = _shown(before[score.metric], name), outcome.differences[name]
        interval = f"[{found.low:+.2f}, {found.high:+.2f}]"
        rows.append((label(name), old, _shown(score, name), f"{found.value:+.2f}", interval, found.verdict))
    return rows


def _shown(score: Score, name: str) -> str:
    return f"{score.values[name]:.2f} {score.unit}".rstrip()


def row_numbers(sheet: Sheet, number: int) -> str:
    """The numbers of one row in words; BLEU-4 stands for BLEU-1 to 4."""
    last = [list(score.rows[number].items())[-1] for score in sheet.scores]
    return ", ".join(f"{label(name)} {value:.1f}" for name, value in last)


def label(name: str) -> str:
    """The name of a number as a person writes it."""
    return re.sub(r"^bleu(\d)$", r"BLEU-\1", name)


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Cells in aligned columns, words to the left and numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1 if len(widths) > 2 else len(widths)
    return [
        "  ".join(
            cell.ljust(width) if place in {0, last} else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def headline(outcome: Outcome) -> str:
    """The verdicts in one line: `better: BLEU-4, exact; no clear difference: perplexity`."""
    groups: dict[str, list[str]] = {}
    for name, difference in outcome.differences.items():
        groups.setdefault(difference.verdict, []).append(label(name))
    return "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in groups.items())


def notes(outcome: Outcome) -> list[str]:
    """What a reader must know before trusting the numbers."""
    said = []
    rows = len(outcome.tuned.answers)
    if rows < FEWEST_ROWS:
        said.append(f"Only {rows} rows: too few to tell models apart; use at least {FEWEST_ROWS}, better 50.")
    for _, sheet in outcome.sides:
        cut = sum(answer.finish == "length" for answer in sheet.answers)
        if cut:
            said.append(f"{cut} answers of {sheet.model} were cut at the token limit.")
    engines = {sheet.engine for _, sheet in outcome.sides if sheet.engine}
    if len(engines) > 1:
        said.append(f"The models ran in different engines ({', '.join(sorted(engines))}).")
    return said
