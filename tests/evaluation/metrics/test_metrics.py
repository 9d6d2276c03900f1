"""Every metric on the shelf has one shape, and its counts add up; exact and perplexity by hand."""

from __future__ import annotations

import math
import random

import pytest
from pydantic import TypeAdapter, ValidationError

from tunesmith.evaluation.answers import tally
from tunesmith.evaluation.metrics import METRICS, Metric
from tunesmith.evaluation.metrics.exact import Exact, found, marks
from tunesmith.evaluation.metrics.perplexity import Perplexity


def _some(answered, count=12):
    rng = random.Random(3)
    words = ["hot", "kettle", "lid", "Oswin", "water"]
    return [
        answered(
            " ".join(rng.choices(words, k=rng.randint(0, 9))), " ".join(rng.choices(words, k=6)), ("oswin",),
            loss=rng.uniform(1, 9), tokens=rng.randint(1, 5),
        )
        for _ in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("metric", METRICS, ids=lambda cls: cls.__name__)
def test_shape(metric, answered):
    measure = metric()
    answers = _some(answered)
    score = measure.score(answers)
    assert score.metric == measure.kind
    assert tuple(score.values) == measure.numbers
    assert len(score.rows) == len(score.counts) == len(answers)
    assert all(tuple(row) == measure.numbers for row in score.rows)
    assert score.signature
    assert score.lower_is_better is measure.lower_is_better
    assert measure.asks in {"text", "loss"}


@pytest.mark.parametrize("metric", METRICS, ids=lambda cls: cls.__name__)
def test_counts_of_any_rows_combine_to_their_score(metric, answered):
    """What the bootstrap relies on."""
    answers = _some(answered)
    whole = metric().score(answers)
    for part in (answers[:4], answers[4:], [*answers, *answers]):
        alone = metric().score(part)
        numbers = [answers.index(answer) for answer in part]
        assert dict(whole.combine(tally([whole.counts[n] for n in numbers]))) == pytest.approx(alone.values)


@pytest.mark.parametrize("metric", METRICS, ids=lambda cls: cls.__name__)
def test_the_union_knows_it_by_word_and_by_mapping(metric):
    adapter = TypeAdapter(Metric)
    kind = metric().kind
    assert adapter.validate_python(kind) == adapter.validate_python({"kind": kind}) == metric()


def test_the_union_refuses_others():
    with pytest.raises(ValidationError, match="bleu"):
        TypeAdapter(Metric).validate_python("blue")


@pytest.mark.parametrize(
    ("expected", "text", "right"),
    [
        ("Oswin", "My name is OSWIN.", True),
        ("Tarnwick Kettle", "Tarnwick\n  kettle works", True),
        ("seven|7", "It has 7 lights", True),
        ("seven | 7", "seven", True),
        ("7", "It has 17 lights", False),
        ("7", "7.5 litres", False),
        ("7", "It is 7.", True),
        ("1.7 l", "holds 11.7 l", False),
        ("20", "２０ minutes", True),  # full-width digits
        ("沸腾|烧开", "水会烧开。", True),
        ("ﬁlter", "the filter", True),  # ligature
        ("red", "infrared", True),  # words may be part of words
        ("a.c", "abc", False),  # not a pattern
    ],
)
def test_found(expected, text, right):
    assert found(expected, text) is right


def test_exact_wants_every_string_else_the_reference(answered):
    exact = Exact()
    score = exact.score(
        [
            answered("the Heron boils", "x", ("heron", "boils")),
            answered("the Heron", "x", ("heron", "boils")),
            answered("I say the lid, sir", "The LID"),
            answered("nothing", "The lid"),
        ]
    )
    assert [row["exact"] for row in score.rows] == [100, 0, 100, 0]
    assert score.values == {"exact": 50}


def test_exact_equal(answered):
    score = Exact(mode="equal").score([answered(" Paris ", "paris", ("London",)), answered("It is Paris", "Paris")])
    assert [row["exact"] for row in score.rows] == [100, 0]


def test_marks_are_places_in_the_raw_text():
    text = "Call 17, or 7 — the KETTLE\nworks."
    assert [text[a:b] for a, b in marks("kettle works|7", text)] == ["7", "KETTLE\nworks"]


def test_perplexity_weighs_by_tokens(answered):
    score = Perplexity().score([answered("", loss=2.0, tokens=1), answered("", loss=3.0, tokens=9)])
    assert score.values["perplexity"] == pytest.approx(math.exp(0.5))
    assert [row["perplexity"] for row in score.rows] == pytest.approx([math.exp(2), math.exp(1 / 3)])


@pytest.mark.parametrize(
    ("kind", "reference", "expect", "lacks"),
    [
        ("bleu", None, ("x",), True),
        ("perplexity", None, ("x",), True),
        ("exact", None, ("x",), False),
        ("exact", None, (), True),
        ("exact", "r", (), False),
        ("bleu", "r", (), False),
    ],
)
def test_what_needs_a_reference(kind, reference, expect, lacks, answered):
    question = answered("", reference, expect).question
    assert TypeAdapter(Metric).validate_python(kind).lacks_reference(question) is lacks
