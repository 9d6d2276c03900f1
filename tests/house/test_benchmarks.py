"""Benchmarks: pages say what was measured, and ratios are the right way round."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import race  # noqa: E402
import report  # noqa: E402


def seen(seconds: float, tokens_per_second: float, peak_gib: float) -> dict[str, float]:
    return {
        "seconds": seconds, "training_seconds": seconds, "peak_bytes": peak_gib * 2**30,
        "tokens_per_second": tokens_per_second, "held_out_loss": 1.75,
    }  # fmt: skip


ROUNDS = [
    {"tunesmith": seen(10, 300, 1), "theirs": seen(30, 100, 2)},
    {"tunesmith": seen(20, 150, 1), "theirs": seen(40, 100, 2.5)},
    {"tunesmith": seen(10, 400, 1), "theirs": seen(50, 100, 4)},
]
"""Beside each other in rounds: 3, 2 and 5 times the seconds; 3, 1.5 and 4 times the tokens/s; 2, 2.5 and 4 times the peak."""


def test_ratios_are_medians_of_rounds_and_above_one_where_tunesmith_is_ahead():
    beside = race.ratios(ROUNDS, "theirs")
    assert (beside["seconds"], beside["peak_bytes"]) == (3, 2.5)
    assert beside["tokens_per_second"] == pytest.approx(3)


def test_a_table_says_how_tunesmith_stands_beside_each_rival():
    job = {
        "ratios": {"theirs": race.ratios(ROUNDS, "theirs")},
        "rounds": [{"revision": name, "contenders": found} for name, found in zip("aab", ROUNDS, strict=True)],
    }
    lines = report.job_table("lora", job, "en").splitlines()
    assert "| tunesmith | 300 | 10 | 1.00 | 1.7500 |  |  |  |" in lines
    assert "| theirs | 100 | 40 | 2.50 | 1.7500 | 3.00x | 3.00x | 0.40x |" in lines
    assert lines[-1] == "Rounds: 3, of revisions a, b."


@pytest.mark.parametrize("name", report.TABLES)
@pytest.mark.parametrize("language", report.FOLDERS)
def test_pages_hold_what_was_measured(language, name):
    page, made = report.TABLES[name]
    text = (report.FOLDERS[language] / page).read_text(encoding="utf-8")
    assert f"<!-- {name} -->\n{made(report.results(name), language)}<!-- {name} ends -->\n" in text
