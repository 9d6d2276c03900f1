"""The public table of memory arithmetic."""

from __future__ import annotations

import pytest

from tunesmith.planning.zero import model_bytes, zero_bytes


@pytest.mark.parametrize(("billions", "gib"), [(7, 13.04), (13, 24.21), (175, 325.96)])
def test_half_precision_weights(billions, gib):
    assert round(model_bytes(billions * 10**9) / 2**30, 2) == gib


def test_mixed_precision_adam_is_16_bytes_a_parameter():
    assert zero_bytes(1, 1, 0) == 16


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_figure_1_of_the_zero_paper(stage, gigabytes):
    """7.5 billion parameters on 64 GPUs."""
    assert zero_bytes(7_500_000_000, 64, stage) / 1e9 == pytest.approx(gigabytes, abs=0.05)
