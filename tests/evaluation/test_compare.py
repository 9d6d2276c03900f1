"""The bootstrap sees what is there, nothing where nothing is, and resamples corpus scores by their counts."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tunesmith.evaluation.compare import compare
from tunesmith.evaluation.metrics import Bleu, Exact, Perplexity


def _exact(answered, right):
    return Exact().score([answered("yes" if hit else "no", "yes") for hit in right])


def test_clear_gain_and_clear_loss(answered):
    bad, good = [False] * 30, [True] * 27 + [False] * 3
    gain = compare(_exact(answered, bad), _exact(answered, good))["exact"]
    assert (gain.value, gain.verdict) == (90, "better")
    assert 70 < gain.low < 90 < gain.high <= 100
    assert compare(_exact(answered, good), _exact(answered, bad))["exact"].verdict == "worse"


def test_same_answers_differ_by_nothing(answered):
    score = _exact(answered, [True, False] * 10)
    same = compare(score, score)["exact"]
    assert (same.value, same.low, same.high, same.verdict) == (0, 0, 0, "no clear difference")


def test_one_more_right_in_forty_is_not_clear(answered):
    before = [True] * 20 + [False] * 20
    after = [True] * 21 + [False] * 19
    assert compare(_exact(answered, before), _exact(answered, after))["exact"].verdict == "no clear difference"


def test_few_rows_say_so(answered):
    found = compare(_exact(answered, [False] * 9), _exact(answered, [True] * 9))["exact"]
    assert (found.value, found.verdict) == (100, "too few rows")


def test_lower_perplexity_is_better(answered):
    rng = random.Random(1)
    losses = [rng.uniform(2, 3) for _ in range(30)]
    before = Perplexity().score([answered("", loss=4 * loss, tokens=4) for loss in losses])
    after = Perplexity().score([answered("", loss=3 * loss, tokens=4) for loss in losses])
    found = compare(before, after)["perplexity"]
    assert found.value < 0
    assert found.verdict == "better"


def test_seeded(answered):
    rng = random.Random(2)
    scores = [Perplexity().score([answered("", loss=rng.uniform(1, 9), tokens=3) for _ in range(25)]) for _ in range(2)]
    assert compare(*scores, seed=7) == compare(*scores, seed=7)
    assert compare(*scores, seed=7) != compare(*scores, seed=8)


def test_interval_of_proportions_is_the_one_of_theory(answered):
    """Paired differences of 0/1 answers: the bootstrap's width is 2 x 1.96 standard errors."""
    rng = random.Random(5)
    a, b = ([rng.random() < p for _ in range(400)] for p in (0.4, 0.6))
    found = compare(_exact(answered, a), _exact(answered, b), resamples=4000)["exact"]
    error = 100 * np.std([int(y) - int(x) for x, y in zip(a, b, strict=True)]) / 20
    assert (found.high - found.low) == pytest.approx(2 * 1.96 * error, rel=0.06)
    assert found.low < found.value < found.high


def test_corpus_bleu_is_resampled_from_counts_not_from_row_scores(answered):
    """One long perfect row among short wrong ones: drawn corpora weigh it by its length."""
    long = " ".join(f"w{n}" for n in range(400))
    rows = [("x y z a b", "one two three four five")] * 19
    base = Bleu().score([answered("?", reference) for _, reference in [*rows, ("", long)]])
    tuned = Bleu().score([answered(text, reference) for text, reference in [*rows, (long, long)]])
    found = compare(base, tuned)["bleu1"]
    assert found.value == pytest.approx(100 * 400 / 495, abs=0.1)
    assert found.high > 90  # drawn several times it fills the corpus; a mean of row scores would stay below 25
