"""Perplexity: exp of the mean loss per token of the reference, given the question. Lower is better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

from tunesmith.core.config import Config
from tunesmith.evaluation.answers import Answer, Question, Score, tally


class Perplexity(Config):
    """How surprised the model is by the references, token by token; needs weights, writes no text."""

    kind: Literal["perplexity"] = "perplexity"
    """How surprised the model is by the references, token by token."""

    numbers: ClassVar[tuple[str, ...]] = ("perplexity",)
    lower_is_better: ClassVar[bool] = True
    asks: ClassVar[Literal["text", "loss"]] = "loss"

    def lacks_reference(self, question: Question) -> bool:
        """Whether the row has none."""
        return question.reference is None

    def score(self, answers: Sequence[Answer]) -> Score:
        """exp(sum of losses / tokens) over all rows, and of each."""
        counts = [(answer.loss, float(answer.tokens)) for answer in answers]
        signature = f"loss:mean-per-token|tokens:{sum(answer.tokens for answer in answers)}|turn:last"
        rows = [self.combine(row) for row in counts]
        return Score(
            self.kind, signature, self.combine(tally(counts)), rows, counts, self.combine, self.lower_is_better, unit=""
        )  # fmt: skip

    def combine(self, counts: Sequence[float]) -> dict[str, float]:
        """Perplexity from (summed loss in nats, tokens)."""
        return {"perplexity": math.exp(counts[0] / counts[1])}
