"""Answers into numbers. Each file is one metric, a Config with the shape of `Measure` below; knows no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import BeforeValidator, Field

from tunesmith.evaluation.answers import Answer, Question, Score
from tunesmith.evaluation.metrics.bleu import Bleu
from tunesmith.evaluation.metrics.exact import Exact
from tunesmith.evaluation.metrics.perplexity import Perplexity


class Measure(Protocol):
    """What every metric is."""

    kind: Any
    numbers: ClassVar[tuple[str, ...]]
    """Names of the numbers it gives."""
    lower_is_better: ClassVar[bool]
    asks: ClassVar[Literal["text", "loss"]]
    """What it needs of a model: the answer's text, or the loss of the reference."""

    def lacks_reference(self, question: Question) -> bool:
        """Whether it needs a reference that the row does not have."""
        ...

    def score(self, answers: Sequence[Answer]) -> Score:
        """The numbers of these answers, one or more."""
        ...

    def combine(self, counts: Sequence[float]) -> Mapping[str, float]:
        """The numbers of rows whose counts were summed."""
        ...


def _word(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


Metric = Annotated[Annotated[Bleu | Exact | Perplexity, Field(discriminator="kind")], BeforeValidator(_word)]
METRICS: tuple[type[Measure], ...] = (Bleu, Exact, Perplexity)
