"""What is scored and what comes out: questions, answers, scores. Knows no metric and no engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tunesmith.core.examples import Conversation, Message


@dataclass(frozen=True, slots=True)
class Question:
    """A row as it is asked: the messages up to its last assistant turn, and what a right answer says."""

    source: str
    messages: tuple[Message, ...]
    reference: str | None
    """The last assistant turn; None where the row has none."""
    expect: tuple[str, ...]
    conversation: Conversation
    """The row up to and with the reference, of which only the reference is trained."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one model made of a question: its text, or the loss of the reference, or both."""

    question: Question
    text: str = ""
    finish: str = ""
    """`stop`, or `length` where the answer was cut at max_tokens."""
    loss: float = 0.0
    """Summed negative log-likelihood (nats) of the reference's tokens."""
    tokens: int = 0
    """Tokens that `loss` sums over."""


@dataclass(frozen=True, slots=True)
class Score:
    """A metric's verdict on one model's answers.

    `counts` are sufficient statistics of every row (n, k): `combine` turns their sum over any rows into the numbers
    of these rows, which is how a bootstrap resamples a corpus score.
    """

    metric: str
    signature: str
    """How it was measured, so that two numbers can be compared or not."""
    values: dict[str, float]
    """Number by name: bleu4, exact, perplexity."""
    rows: list[dict[str, float]]
    """The numbers of every row by itself."""
    counts: list[tuple[float, ...]]
    combine: Callable[[Sequence[float]], Mapping[str, float]]
    lower_is_better: bool = False
    unit: str = "%"


def tally(counts: Sequence[Sequence[float]]) -> list[float]:
    """The statistics of many rows as those of one corpus: summed column by column."""
    return [sum(column) for column in zip(*counts, strict=True)]
