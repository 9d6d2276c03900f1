"""An epoch's time from a few steps."""

from __future__ import annotations

import pytest

from tunesmith.planning.time import seconds_per_epoch


def test_time_follows_the_tokens():
    tokens = [10, 400, 30, 200, 50, 100] * 20
    found = seconds_per_epoch(lambda step: (tokens[step] * 0.003, tokens[step] * 0.001), tokens, 1e9)
    assert found == pytest.approx((sum(tokens) * 0.003, sum(tokens) * 0.001))


def test_a_part_of_the_steps_says_nearly_the_same():
    """A cost with a constant part, measured on two steps only."""
    tokens = list(range(50, 450))
    made = []

    def step(number):
        made.append(number)
        return 0.02 + tokens[number] * 0.001, 0.01 + tokens[number] * 0.001

    estimated = seconds_per_epoch(step, tokens, 1e-9)
    assert len(made) == 3  # one to warm up
    wanted = [sum(constant + it * 0.001 for it in tokens) for constant in (0.02, 0.01)]
    assert estimated == pytest.approx(wanted, rel=0.2)


def test_the_first_step_does_not_count():
    slow = iter([100.0, 1.0, 1.0, 1.0])
    assert seconds_per_epoch(lambda step: (next(slow), 0.5), [5, 5, 5], 1e9) == pytest.approx((3.0, 1.5))


def test_one_step_and_none():
    assert seconds_per_epoch(lambda step: (2.0, 1.0), [7], 5) == (2.0, 1.0)
    assert seconds_per_epoch(lambda step: (2.0, 1.0), [], 5) is None
    assert seconds_per_epoch(lambda step: (2.0, 1.0), [7], 0) is None
