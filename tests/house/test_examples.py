"""The example texts are what their README says: enough of each, consistent, and held-out questions in other words."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

import pytest

KETTLE = Path(__file__).resolve().parents[2] / "examples" / "kettle"
LANGUAGES = ["en", "zh"]


def rows(language: str, name: str) -> list[dict]:
    lines = (KETTLE / language / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def units(text: str) -> set[str]:
    """Words of English, pairs of neighbouring characters of Chinese."""
    text = text.lower()
    if re.search(r"[\u4e00-\u9fff]", text):
        plain = re.sub(r"[\W_]", "", text)
        return {plain[n : n + 2] for n in range(len(plain) - 1)}
    return set(re.findall(r"[a-z0-9.]+", text))


@pytest.mark.parametrize("language", LANGUAGES)
def test_there_is_enough_of_everything(language):
    assert len(rows(language, "train.jsonl")) >= 240
    assert len(rows(language, "held_out.jsonl")) >= 40
    assert len(rows(language, "general_held_out.jsonl")) >= 30
    assert len(rows(language, "out_of_scope.jsonl")) >= 40
    faq = rows(language, "faq.jsonl")
    assert len(faq) >= 60
    assert all(len(entry["variants"]) >= 2 and entry["answer"] for entry in faq)
    facts = (KETTLE / language / "facts.tsv").read_text(encoding="utf-8").splitlines()
    assert len(facts) > 300
    assert all(line.count("\t") == 2 for line in facts)
    assert len(list((KETTLE / language / "handbook").glob("*.md"))) >= 15


@pytest.mark.parametrize("language", LANGUAGES)
def test_held_out_questions_are_in_other_words(language):
    by_answer = defaultdict(list)
    for row in rows(language, "train.jsonl"):
        by_answer[row["output"]].append(row["instruction"])
    for row in rows(language, "held_out.jsonl"):
        assert row["output"] in by_answer, row
        for asked in by_answer[row["output"]]:
            mine, theirs = units(row["instruction"]), units(asked)
            assert len(mine & theirs) / len(mine | theirs) <= 0.45, (row["instruction"], asked)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", ["held_out.jsonl", "general_held_out.jsonl"])
def test_expected_texts_are_in_the_answer_and_not_in_the_question(language, name):
    for row in rows(language, name):
        assert row["expect"], row
        for expected in row["expect"]:
            alternatives = expected.lower().split("|")
            assert any(text in row["output"].lower() for text in alternatives), row
            if name == "held_out.jsonl":
                assert not any(text in row["instruction"].lower() for text in alternatives), row


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_question_is_both_trained_and_asked(language):
    trained = {row["instruction"].lower() for name in ("train", "general") for row in rows(language, f"{name}.jsonl")}
    asked = {
        row["instruction"].lower()
        for name in ("held_out", "general_held_out")
        for row in rows(language, f"{name}.jsonl")
    }
    assert not trained & asked
