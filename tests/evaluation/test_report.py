"""The reports hold every answer, mark what was expected, escape all text and ask nothing of any network."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from tunesmith.core import files
from tunesmith.evaluation.compare import Outcome, compare_all
from tunesmith.evaluation.metrics import Bleu, Exact, Perplexity
from tunesmith.evaluation.page import page
from tunesmith.evaluation.report import ANSWERS, HTML, MARKDOWN, NUMBERS, markdown, write
from tunesmith.evaluation.suite import Sheet

EVIL = '<script>alert(1)</script> & "quotes"\n```\n# not a heading | <img src=x onerror=alert(2)> \x00\x1b[31m'
METRICS = (Bleu(), Exact(), Perplexity())


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.open, self.marked, self.text = [], [], [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in {"meta", "input", "rect", "circle", "line"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] == "mark":
            self.marked.append(data)


def read(html):
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    return reader


@pytest.fixture
def outcome(answered):
    def sheet(model, texts):
        answers = [
            answered(text, "It is Paris.", ("Paris",), question=f"Question {n}?", loss=2.0, tokens=2)
            for n, text in enumerate(texts)
        ]
        return Sheet(model, "parrot", answers, [metric.score(answers) for metric in METRICS])

    def make(base_texts, tuned_texts):
        base, tuned = sheet("base-model", base_texts) if base_texts else None, sheet("runs/tuned", tuned_texts)
        differences = compare_all(base.scores, tuned.scores, resamples=100, seed=1) if base else {}
        return Outcome(tuned, base, differences, {"data": "rows.jsonl", "answers": "greedy"})

    return make


def test_every_answer_is_kept(outcome, tmp_path):
    texts = [f"answer {n}" for n in range(11)]
    made = outcome([f"before {n}" for n in range(11)], texts)
    write(made, tmp_path / "evaluation", run="r")
    assert files.verify(tmp_path / "evaluation") is None
    rows = [row for _, row in files.read_jsonl(tmp_path / "evaluation" / ANSWERS)]
    assert [row["tuned"]["answer"] for row in rows] == texts
    assert rows[3]["base"] == {"answer": "before 3", "finish": "stop", "scores": rows[3]["base"]["scores"]}
    assert rows[3]["prompt"] == [{"role": "user", "content": "Question 3?"}]
    assert (rows[3]["reference"], rows[3]["expect"], rows[3]["source"]) == ("It is Paris.", ["Paris"], "rows.jsonl:1")
    assert set(rows[3]["tuned"]["scores"]) == {"bleu1", "bleu2", "bleu3", "bleu4", "exact", "perplexity"}
    html, text = ((tmp_path / "evaluation" / name).read_text(encoding="utf-8") for name in (HTML, MARKDOWN))
    for n in range(11):
        for words in (f"Question {n}?", f"answer {n}", f"before {n}"):
            assert words in html
            assert words in text
    numbers = files.read_json(tmp_path / "evaluation" / NUMBERS)
    assert numbers["tuned"]["exact"] == 0
    assert "tok:13a" in numbers["signatures"]["bleu"]


def test_page_is_well_formed_and_self_contained(outcome):
    html = page(outcome(["wrong"] * 12, ["It is PARIS."] * 11 + ["no"]))
    reader = read(html)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(reader.tags)
    assert not [a for a in reader.attributes if a[1] in {"src", "href", "srcset", "action"} or a[1].startswith("on")]
    assert "url(" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html
    assert reader.tags.count("svg") == 2
    assert reader.marked.count("PARIS") == 11
    assert reader.tags.count("article") == 12
    assert "Gained 11" in reader.text
    assert "▲ better" in reader.text
    assert "prefers-color-scheme:dark" in html


def test_text_of_models_and_rows_is_only_text(outcome):
    made = outcome([EVIL] * 10, ["It is Paris. " + EVIL] * 10)
    reader = read(page(made))
    assert not {"script", "img"} & set(reader.tags)
    assert '<script>alert(1)</script> & "quotes"' in reader.text
    assert "\x00" not in reader.text
    assert reader.marked.count("Paris") == 20  # ten answers and ten references
    fences = re.findall(r"^(`{3,})text\n(.*?)\n\1$", markdown(made), re.DOTALL | re.MULTILINE)
    assert [body for _, body in fences if body == EVIL] == [EVIL] * 10


def test_without_base(outcome):
    made = outcome(None, ["It is Paris."] * 10)
    reader = read(page(made))
    assert "better" not in reader.text
    assert reader.tags.count("svg") == 1
    assert "| metric | value |" in markdown(made)
    assert "| exact | 100.00 % |" in markdown(made)


def test_numbers_in_the_table_are_the_scores(outcome):
    made = outcome(["no"] * 10, ["It is Paris."] * 10)
    assert "| exact | 0.00 % | 100.00 % | +100.00 | [+100.00, +100.00] | better |" in markdown(made)
    assert "| perplexity | 2.72 | 2.72 | +0.00 | [+0.00, +0.00] | no clear difference |" in markdown(made)


def test_few_rows_and_cut_answers_are_said(outcome):
    assert "Only 3 rows" in markdown(outcome(["no"] * 3, ["yes"] * 3))
    assert "Only" not in markdown(outcome(["no"] * 10, ["yes"] * 10))
