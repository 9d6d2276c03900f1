"""Exact: the share of answers, in percent, that hold every expected string or equal the reference."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import ClassVar, Literal

from tunesmith.core.config import Config
from tunesmith.evaluation.answers import Answer, Question, Score, tally


class Exact(Config):
    """Whether an answer holds what it must; works with `expect` strings, else with references."""

    kind: Literal["exact"] = "exact"
    """Whether an answer holds what it must."""
    mode: Literal["contains", "equal"] = "contains"
    """contains: every string in expect (else the reference) is in the answer; equal: the answer is the reference."""

    numbers: ClassVar[tuple[str, ...]] = ("exact",)
    lower_is_better: ClassVar[bool] = False
    asks: ClassVar[Literal["text", "loss"]] = "text"

    def lacks_reference(self, question: Question) -> bool:
        """Whether the row has none and it is what is compared with."""
        return question.reference is None and (self.mode == "equal" or not question.expect)

    def score(self, answers: Sequence[Answer]) -> Score:
        """Percent of right answers; 0 or 100 for a row."""
        counts = [(float(self._right(answer)), 1.0) for answer in answers]
        signature = f"mode:{self.mode}|norm:NFKC+casefold+space|digits:whole"
        rows = [self.combine(row) for row in counts]
        return Score(
            self.kind, signature, self.combine(tally(counts)), rows, counts, self.combine, self.lower_is_better
        )

    def combine(self, counts: Sequence[float]) -> dict[str, float]:
        """Percent from (right, asked)."""
        return {"exact": 100 * counts[0] / counts[1]}

    def _right(self, answer: Answer) -> bool:
        question = answer.question
        if self.mode == "equal":
            return normalize(answer.text) == normalize(question.reference or "")
        return all(found(expected, answer.text) for expected in question.expect or [question.reference or ""])


def normalize(text: str) -> str:
    """The text without differences that nobody means: NFKC, case folded, one space between words."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def found(expected: str, text: str) -> bool:
    """Whether one of the alternatives `a|b` is in the text. A number is found only whole: 7 is not in 17 or 7.5."""
    return any(_pattern(choice).search(normalize(text)) for choice in alternatives(expected))


def alternatives(expected: str) -> list[str]:
    """The strings of `a|b`, blanks around them taken off, empty ones left out."""
    return [choice.strip() for choice in expected.split("|") if choice.strip()]


def marks(expected: str, text: str) -> list[tuple[int, int]]:
    """Where in the text as it stands (start, end) the alternatives are, for showing; spelling differences stay unmarked."""
    spans = [
        match.span()
        for choice in alternatives(expected)
        for match in re.finditer(_whole(r"\s+".join(map(re.escape, choice.split())), choice), text, re.IGNORECASE)
    ]
    return sorted(spans)


def _pattern(choice: str) -> re.Pattern[str]:
    wanted = normalize(choice)
    return re.compile(_whole(re.escape(wanted), wanted))


def _whole(pattern: str, choice: str) -> str:
    before = r"(?<![0-9])(?<![0-9][.,])" if choice[:1].isdigit() else ""
    after = r"(?![0-9]|[.,][0-9])" if choice[-1:].isdigit() else ""
    return f"{before}{pattern}{after}"
