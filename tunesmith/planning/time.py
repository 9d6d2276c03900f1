"""Seconds an epoch takes, from a few steps that are really made. Knows no model: the caller hands the step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence


def seconds_per_epoch(
    step: Callable[[int], tuple[float, float]], tokens: Sequence[int], budget_seconds: float
) -> tuple[float, float] | None:
    """Extrapolate (the first epoch, every further one) by tokens from steps made for about `budget_seconds`.

    `tokens[i]` are the padded tokens of step i of the epoch; `step(i)` makes that step and returns its seconds in the first
    epoch and in a further one. A step of middle size warms up and is not counted; then at least two, spread evenly over the
    sizes. None when there is nothing to measure.
    """
    if not tokens or budget_seconds <= 0:
        return None
    by_size = sorted(range(len(tokens)), key=lambda number: tokens[number])
    step(by_size[len(by_size) // 2])
    started, first, further, seen = time.perf_counter(), 0.0, 0.0, 0
    for made, number in enumerate(_spread(by_size)):
        if made >= 2 and time.perf_counter() - started >= budget_seconds:
            break
        seconds = step(number)
        first, further, seen = first + seconds[0], further + seconds[1], seen + tokens[number]
    return first / seen * sum(tokens), further / seen * sum(tokens)


def _spread(order: Sequence[int]) -> list[int]:
    """The same items so that every beginning of the list covers the range evenly (multiples of the golden ratio)."""
    return [order[place] for place in sorted(range(len(order)), key=lambda place: place * 0.6180339887498949 % 1)]
