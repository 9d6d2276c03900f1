"""Rows into questions, questions into answers, answers into scores. Knows engines by their contract only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tunesmith.core.errors import DataError
from tunesmith.core.examples import Conversation, Message
from tunesmith.engines.contract import Engine, Request, Sampling, complete_many
from tunesmith.evaluation.answers import Answer, Question, Score
from tunesmith.evaluation.metrics import Measure
from tunesmith.evaluation.metrics.exact import alternatives

Scorer = Callable[[Sequence[Conversation]], Sequence[tuple[float, int]]]
"""Loss of the trained tokens of every row: (summed nats, tokens)."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """What one model did on all questions."""

    model: str
    engine: str
    """What generated the answers; empty where no metric reads them."""
    answers: list[Answer]
    scores: list[Score]

    @property
    def values(self) -> dict[str, float]:
        """Every number of every metric by its name."""
        return {name: value for score in self.scores for name, value in score.values.items()}


def pose(rows: Sequence[Conversation], metrics: Sequence[Measure]) -> list[Question]:
    """Questions of the rows, checked against what the metrics need.

    Raises DataError for no rows at all, a row with nothing to ask, and a row without the reference a metric compares with.
    """
    if not rows:
        raise DataError("data", "holds no rows", do="Put at least one row into it")
    questions = [_question(row) for row in rows]
    for question in questions:
        for metric in metrics:
            if metric.lacks_reference(question):
                raise DataError(
                    question.source,
                    f"no assistant turn to compare with, which {metric.kind} needs",
                    do="Add one or name only other --metrics",
                )
    return questions


def _question(row: Conversation) -> Question:
    spoken = [n for n, message in enumerate(row.messages) if message.role == "assistant" and message.content.strip()]
    last = spoken[-1] if spoken else None
    prompt = row.messages[:last] if last is not None else _open_end(row)
    if not any(message.role == "user" and message.content.strip() for message in prompt):
        raise DataError(row.source, "asks nothing: no user turn before the last assistant turn")
    for expected in row.expect:
        if not alternatives(expected):
            raise DataError(row.source, "expect holds an empty text, which every answer contains", got=expected)
    if last is None:
        return Question(row.source, prompt, None, row.expect, replace(row, messages=prompt))
    context = tuple(replace(message, trained=False) for message in prompt)
    reference = replace(row.messages[last], trained=True)
    whole = replace(row, messages=(*context, reference))
    return Question(row.source, prompt, reference.content, row.expect, whole)


def _open_end(row: Conversation) -> tuple[Message, ...]:
    """A row without a spoken assistant turn, without the empty turns at its end (alpaca rows have `output: ""`)."""
    messages = row.messages
    while messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    return messages


def generate(
    questions: Sequence[Question],
    open_engine: Callable[[], Engine],
    sampling: Sampling,
    *,
    done: Callable[[int], object] | None = None,
) -> tuple[list[Answer], str]:
    """Ask every question, as many at once as the engine takes. Returns the answers and the engine's name."""
    names: list[str] = []

    def open_and_note() -> Engine:
        engine = open_engine()
        names.append(engine.name)
        return engine

    requests = [Request(question.messages, sampling=sampling) for question in questions]
    replies = complete_many(open_and_note, requests, done=done)
    answers = [Answer(question, reply.text, reply.finish) for question, reply in zip(questions, replies, strict=True)]
    return answers, names[0]


def weigh(answers: Sequence[Answer], scorer: Scorer) -> list[Answer]:
    """The answers with the loss of their references. Raises DataError for a reference without a token that counts."""
    losses = scorer([answer.question.conversation for answer in answers])
    weighed = [
        replace(answer, loss=loss, tokens=tokens) for answer, (loss, tokens) in zip(answers, losses, strict=True)
    ]
    empty = next((answer for answer in weighed if not answer.tokens), None)
    if empty:
        raise DataError(empty.question.source, "has no token of the reference within the model's context")
    return weighed
