"""Is the tuned model better? Paired bootstrap of the difference on the same rows (Koehn 2004, EMNLP, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tunesmith.evaluation.answers import Score
from tunesmith.evaluation.suite import Sheet

if TYPE_CHECKING:
    import numpy as np

FEWEST_ROWS = 10
"""Below this an interval says little: with 5 rows, one lucky answer moves a score by 20 points."""
CONFIDENCE = 95.0
_BLOCK = 64  # resamples drawn at once; keeps memory at 64 numbers a row

Verdict = Literal["better", "worse", "no clear difference", "too few rows"]


@dataclass(frozen=True, slots=True)
class Difference:
    """Tuned minus base of one number, with its 95 % interval in the number's own unit."""

    value: float
    low: float
    high: float
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Outcome:
    """All there is to report: what the models did, and by how much they differ."""

    tuned: Sheet
    base: Sheet | None
    differences: dict[str, Difference]
    facts: dict[str, str]
    """How it was measured, for the reader of a report: data, sampling, seed, date."""

    @property
    def sides(self) -> list[tuple[str, Sheet]]:
        """The models by what a reader calls them: base and tuned, or model where there is only one."""
        return [("base", self.base), ("tuned", self.tuned)] if self.base else [("model", self.tuned)]


def compare(base: Score, tuned: Score, *, resamples: int = 2000, seed: int = 42) -> dict[str, Difference]:
    """Difference, interval and verdict for every number of a metric.

    Rows are drawn with replacement, the same rows for both models; a corpus score is computed anew from the summed
    counts of the drawn rows, never as a mean of row scores. Both scores must be over the same rows.
    """
    assert len(base.counts) == len(tuned.counts), "scores of different rows cannot be paired"
    drawn = _resampled(base, tuned, resamples, seed)
    edge = (100 - CONFIDENCE) / 2
    return {name: _judge(tuned.values[name] - base.values[name], drawn[name], edge, tuned) for name in tuned.values}


def compare_all(base: Sequence[Score], tuned: Sequence[Score], *, resamples: int, seed: int) -> dict[str, Difference]:
    """`compare` for every metric, in one mapping by the name of the number."""
    pairs = zip(base, tuned, strict=True)
    return {name: d for pair in pairs for name, d in compare(*pair, resamples=resamples, seed=seed).items()}


def _resampled(base: Score, tuned: Score, resamples: int, seed: int) -> dict[str, list[float]]:
    import numpy as np

    generator = np.random.default_rng(seed)
    rows = len(tuned.counts)
    base_counts, tuned_counts = np.asarray(base.counts, float), np.asarray(tuned.counts, float)
    drawn: dict[str, list[float]] = {name: [] for name in tuned.values}
    for start in range(0, resamples, _BLOCK):
        block = min(_BLOCK, resamples - start)
        times = generator.multinomial(rows, [1 / rows] * rows, size=block)  # how often each row is drawn (block, rows)
        for before, after in zip(_sums(times, base_counts), _sums(times, tuned_counts), strict=True):
            old, new = base.combine(before), tuned.combine(after)
            for name, values in drawn.items():
                values.append(new[name] - old[name])
    return drawn


def _sums(times: np.ndarray, counts: np.ndarray) -> list[list[float]]:
    return (times @ counts).tolist()  # (block, k)


def _judge(value: float, drawn: Sequence[float], edge: float, score: Score) -> Difference:
    import numpy as np

    low, high = (float(limit) for limit in np.percentile(drawn, [edge, 100 - edge]))
    verdict: Verdict = "no clear difference"
    if len(score.counts) < FEWEST_ROWS:
        verdict = "too few rows"
    elif low > 0 or high < 0:
        verdict = "better" if (low > 0) != score.lower_is_better else "worse"
    return Difference(value, low, high, verdict)
