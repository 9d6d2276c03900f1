"""Kept answers: found again for the same question to the same weights, and for nothing else."""

from __future__ import annotations

import json
import shutil

import pytest

import tunesmith
from tunesmith.core import files
from tunesmith.core.errors import DataError


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache" / "answers"


@pytest.fixture
def base(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "base")


@pytest.fixture
def ask(tiny_model, rows_file, base, tmp_path):
    """Evaluate the tiny model against a copy of it; returns whether the base answered anew, and its texts."""
    number = iter(range(100))

    def run(**options):
        out = tmp_path / f"run-{next(number)}"
        wish = {"data": {"path": [str(rows_file)], "rows": 3}, "metrics": ["exact"], "sampling": {"max_tokens": 3}}
        made = tunesmith.evaluate(model=str(tiny_model), base=str(base), out=out, **{**wish, **options})
        events = [json.loads(line)["event"] for line in (out / "events.jsonl").read_text().splitlines()]
        lines = [json.loads(line) for line in made.answers.read_text().splitlines()]
        return "reused" not in events, lines

    return run


def test_the_same_weights_answer_the_same_questions_once(ask, cache):
    fresh, first = ask()
    again, second = ask()
    assert (fresh, again) == (True, False)
    assert first == second
    assert len(list(cache.iterdir())) == 1


def test_whatever_may_change_an_answer_asks_again(ask, base, rows_file, cache):
    ask()
    assert ask(sampling={"max_tokens": 4})[0]
    assert ask(data={"path": [str(rows_file)], "rows": 4})[0]
    assert ask(engine={"kind": "transformers", "rows": 2})[0]
    template = base / "chat_template.jinja"
    template.write_text(template.read_text() + "{# another #}")
    assert ask()[0]
    assert len(list(cache.iterdir())) == 5


def test_reuse_can_be_refused(ask, cache):
    ask()
    kept = next(cache.iterdir())
    answers = files.read_json(kept)
    answers["answers"][0][0] = "not what it said"
    files.write_json(kept, answers)
    assert "not what it said" in str(ask()[1])
    assert "not what it said" not in str(ask(reuse=False)[1])


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"engine": "e", "answers": []}'])
def test_a_broken_file_is_named(ask, cache, text):
    ask()
    kept = next(cache.iterdir())
    kept.write_text(text)
    with pytest.raises(DataError, match=kept.name[:20]):
        ask()


def test_a_cache_that_cannot_be_written_costs_no_answer(ask, cache, capsys):
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    fresh, lines = ask()
    assert fresh
    assert len(lines) == 3
    assert "answers are not kept" in capsys.readouterr().out
