"""BLEU-1 to BLEU-4: clipped n-gram precision with brevity penalty (Papineni et al. 2002, eq. 1-4), in percent.

Agrees with sacrebleu on all texts and with nltk where every answer has four tokens or more (nltk counts one n-gram
for an answer too short to have any, sacrebleu and we count none).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Literal

from tunesmith.core.config import Config
from tunesmith.evaluation.answers import Answer, Question, Score, tally
from tunesmith.evaluation.tokens import choose, tokenize

ORDERS = 4
Smoothing = Literal["none", "add-one", "exp"]
Counts = Sequence[float]  # answer length, reference length, matches of 1..4-grams, n-grams of order 1..4


class Bleu(Config):
    """How many words and word sequences of the reference an answer has; needs references."""

    kind: Literal["bleu"] = "bleu"
    """How many words and word sequences of the reference an answer has."""
    tokenize: Literal["auto", "13a", "zh", "char"] = "auto"
    """Units that are counted: 13a words, zh (Chinese by character), char; auto: zh for rows with Chinese, else 13a."""
    smoothing: Smoothing = "exp"
    """What an n-gram order without any match counts: none (the score is 0), exp (halved for each such order), add-one."""

    numbers: ClassVar[tuple[str, ...]] = ("bleu1", "bleu2", "bleu3", "bleu4")
    lower_is_better: ClassVar[bool] = False
    asks: ClassVar[Literal["text", "loss"]] = "text"

    def lacks_reference(self, question: Question) -> bool:
        """Whether the row has none."""
        return question.reference is None

    def score(self, answers: Sequence[Answer]) -> Score:
        """Corpus BLEU-1..4 over all answers; a row's own number is its sentence BLEU over the orders it is long enough for."""
        used, counts = set(), []
        for answer in answers:
            reference = answer.question.reference or ""
            tokenizer = choose([reference]) if self.tokenize == "auto" else self.tokenize
            used.add(tokenizer)
            counts.append(count(tokenize(answer.text, tokenizer), [tokenize(reference, tokenizer)]))
        signature = f"nrefs:1|case:mixed|eff:no|tok:{'+'.join(sorted(used))}|smooth:{self.smoothing}"
        rows = [self._numbers(row, effective_order=True) for row in counts]
        return Score(
            self.kind, signature, self.combine(tally(counts)), rows, counts, self.combine, self.lower_is_better
        )

    def combine(self, counts: Counts) -> dict[str, float]:
        """Corpus numbers from summed counts."""
        return self._numbers(counts, effective_order=False)

    def _numbers(self, counts: Counts, *, effective_order: bool) -> dict[str, float]:
        return {
            name: bleu(counts, order, self.smoothing, effective_order=effective_order)
            for order, name in enumerate(self.numbers, 1)
        }


def count(answer: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[int, ...]:
    """What BLEU needs to know of one answer; sums of it are the counts of a corpus.

    Matches are clipped at the most any one reference has; the reference length is the closest one, the shorter of two.
    """
    closest = min((len(reference) for reference in references), key=lambda n: (abs(n - len(answer)), n))
    matches, totals = [], []
    for order in range(1, ORDERS + 1):
        allowed: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            allowed |= _ngrams(reference, order)
        found = _ngrams(answer, order)
        matches.append((found & allowed).total())
        totals.append(found.total())
    return (len(answer), closest, *matches, *totals)


def bleu(counts: Counts, order: int = ORDERS, smoothing: Smoothing = "none", *, effective_order: bool = False) -> float:
    """BLEU-`order` in percent from counts, every order up to it with the same weight.

    `effective_order` leaves out orders that the answer is too short for (sacrebleu's name; for single sentences).
    add-one: Lin & Och 2004 for n > 1; exp: method 3 of Chen & Cherry 2014 (mteval-v13a).
    """
    length, reference_length = counts[:2]
    if not counts[2]:  # no word in common
        return 0.0
    logs, without = [], 0
    for n in range(order):
        added = 1 if smoothing == "add-one" and n else 0
        match, total = counts[2 + n] + added, counts[2 + ORDERS + n] + added
        if not total and effective_order:
            break
        if not match and smoothing == "exp":
            without += 1
            match = 0.5**without
        if not match or not total:
            return 0.0
        logs.append(math.log(match / total))
    penalty = min(0.0, 1 - reference_length / length)
    return 100 * math.exp(penalty + math.fsum(logs) / len(logs))


def _ngrams(tokens: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[start:] for start in range(order)), strict=False))
