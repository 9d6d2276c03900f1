"""Rows become questions, an engine's replies answers; what cannot be scored is refused in one line."""

from __future__ import annotations

import pytest

from tunesmith.core.errors import DataError
from tunesmith.core.examples import Conversation, Message
from tunesmith.engines.contract import Sampling
from tunesmith.evaluation.metrics import Bleu, Exact, Perplexity
from tunesmith.evaluation.suite import generate, pose, weigh

U, A, S = (lambda text, role=role: Message(role, text) for role in ("user", "assistant", "system"))


def test_the_last_assistant_turn_is_the_reference_and_alone_is_trained():
    turns = (S("be short"), U("one"), A("1"), U("two"), A("2"), U("thanks"))
    question = pose([Conversation(turns, "x:1")], [Bleu()])[0]
    assert question.messages == turns[:4]
    assert question.reference == "2"
    assert [m.trained for m in question.conversation.messages if m.role == "assistant"] == [False, True]
    assert question.conversation.messages[-1].content == "2"


def test_a_row_without_reference_is_fine_where_expect_suffices(row):
    bare = row("capital of France?", None, ("Paris",))
    empty = row("capital of France?", "", ("Paris",))
    for question in pose([bare, empty], [Exact()]):
        assert question.reference is None
        assert [m.content for m in question.messages] == ["capital of France?"]


@pytest.mark.parametrize(
    ("rows", "metrics", "says"),
    [
        ([], [Exact()], "data: holds no rows"),
        ([Conversation((U("q"),), "f:3")], [Bleu()], "f:3: no assistant turn to compare with, which bleu needs"),
        ([Conversation((U("q"),), "f:3", expect=("x",))], [Exact(), Perplexity()], "which perplexity needs"),
        ([Conversation((U("q"),), "f:3")], [Exact()], "which exact needs"),
        ([Conversation((U("q"),), "f:3", expect=("x",))], [Exact(mode="equal")], "which exact needs"),
        ([Conversation((A("hello"),), "f:4")], [Bleu()], "f:4: asks nothing"),
        ([Conversation((U(" "), A("hello")), "f:4")], [Bleu()], "f:4: asks nothing"),
        ([Conversation((U("q"), A("a")), "f:5", expect=("ok", " | "))], [Exact()], "f:5: expect holds an empty text"),
    ],
)
def test_rows_that_cannot_be_scored(rows, metrics, says):
    with pytest.raises(DataError, match=says.replace("|", r"\|")) as raised:
        pose(rows, metrics)
    assert "\n" not in str(raised.value)


def test_generate_keeps_the_order_closes_the_engine_and_samples_all_alike(row, parrot):
    known = {f"q{n}": f"answer number {n}" for n in range(20)}
    questions = pose([row(f"q{n}") for n in range(20)], [])
    engine, counted = parrot(known), []
    sampling = Sampling(max_tokens=5, seed=1)
    answers, name = generate(questions, lambda: engine, sampling, done=counted.append)
    assert [answer.text for answer in answers] == list(known.values())
    assert (name, engine.closed, sum(counted), engine.sampled) == ("parrot", 1, 20, {sampling})


def test_weigh_puts_losses_on_answers_and_refuses_none(answered):
    answers = [answered("a"), answered("b")]
    weighed = weigh(answers, lambda rows: [(1.5, 3) for _ in rows])
    assert [(a.text, a.loss, a.tokens) for a in weighed] == [("a", 1.5, 3), ("b", 1.5, 3)]
    with pytest.raises(DataError, match="no token of the reference"):
        weigh(answers, lambda rows: [(1.5, 3), (0.0, 0)])
