"""Small examinations of the model while it is trained: answers to sample questions, a general set, end tokens.

All are deterministic and leave the random state as it is, so a run with them has the losses of one without.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import DataError
from tunesmith.core.examples import IGNORED, Conversation, Message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunesmith.data.dataset import Rows, TokenRow
    from tunesmith.training.diagnosis import DiagnosisConfig

GENERAL = Path(__file__).with_name("general.jsonl")
END_ROWS, END_CANDIDATES = 8, 32
"""Rows on which the loss of the end token is measured, the shortest of so many: the token is the same in every row, its mean
is then known to a fifth of a nat or so, and what counts as high is a whole one. A row is read whole for one token."""
SPARE_TOKENS = 8
"""Added to the length of sample answers, so that those of one word can still repeat themselves."""
LONGEST_PROMPT = 512
"""Tokens; sample questions with longer prompts are passed over, they would cost more than the training step."""


@dataclass(frozen=True, slots=True)
class Question:
    """A sample question: token ids of prompt and reference answer."""

    prompt: list[int]
    reference: list[int]


@dataclass(frozen=True, slots=True)
class Probes:
    """What the model is asked at each evaluation. Nothing asked is nothing paid."""

    tokenizer: Any
    questions: tuple[Question, ...] = ()
    answer_tokens: int = 64
    general: tuple[TokenRow, ...] = ()
    ends: tuple[TokenRow, ...] = ()
    """Rows whose trained tokens are the end of the answer alone."""
    rows_at_once: int = 8
    bf16: bool = False

    @classmethod
    def of(cls, wish: DiagnosisConfig, rows: Rows, tokenizer: Any, *, room: int, **how: Any) -> Probes:
        """What a config wants to be asked, taken from some rows, as far as `room` tokens hold it; `how` is the rest.

        Answers may be twice as long as the rows' own: what goes on for longer does not end, or goes round in circles.
        """
        longest_prompt = min(LONGEST_PROMPT, room - wish.sample_tokens)
        questions = sample_questions(rows, wish.samples, longest_prompt, wish.sample_tokens)
        longest = max((len(question.reference) for question in questions), default=0)
        return cls(
            tokenizer, questions, min(wish.sample_tokens, 2 * longest + SPARE_TOKENS),
            general_rows(tokenizer, wish.general, min(LONGEST_PROMPT, room)), end_rows(rows, tokenizer), **how,
        )  # fmt: skip

    def __call__(self, model: Any) -> dict[str, Any]:
        """Numbers for the `probe` event: samples, general (mean loss of each row), end_loss (nats a token)."""
        model = getattr(model, "policy", model)  # beside a value head stands the model that answers
        found: dict[str, Any] = {}
        with _examined(model, bf16=self.bf16):
            if self.general:
                found["general"] = [_number(loss) for loss in self._losses(model, self.general)]
            if self.ends:
                losses = self._losses(model, self.ends)
                found["end_loss"] = _number(sum(losses) / len(losses))
            if self.questions:
                found["samples"] = self._samples(model)
        return found

    def _losses(self, model: Any, rows: Sequence[TokenRow]) -> list[float]:
        """Mean loss of each row, nats a trained token."""
        from tunesmith.data.batch import pad_sequences
        from tunesmith.models.head import label_losses

        means = [math.nan] * len(rows)
        order = sorted(range(len(rows)), key=lambda place: len(rows[place].ids))  # of like length together: no padding
        for start in range(0, len(rows), self.rows_at_once):
            places = order[start : start + self.rows_at_once]
            batch = pad_sequences([rows[place] for place in places], self.tokenizer.pad_token_id or 0)
            counts = (batch["labels"] != IGNORED).sum(1)
            sums = label_losses(model, {name: value.to(model.device) for name, value in batch.items()}).sum(1)
            for place, mean in zip(places, (sums.cpu() / counts).tolist(), strict=True):
                means[place] = mean
        return means

    def _samples(self, model: Any) -> list[dict[str, Any]]:
        answers = self._answer(model)
        return [
            {
                "answer": self.tokenizer.decode(ids, skip_special_tokens=True), "tokens": len(ids), "ended": ended,
                "repetition": round(repetition(ids), 3),
                "reference_tokens": len(question.reference),
                "reference_repetition": round(repetition(question.reference), 3),
            }
            for question, (ids, ended) in zip(self.questions, answers, strict=True)
        ]  # fmt: skip

    def _answer(self, model: Any) -> list[tuple[list[int], bool]]:
        """Greedy answers (without the end token) and whether the model ended them."""
        import torch
        from transformers import GenerationConfig

        from tunesmith.engines.transformers import end_token_ids

        ends = end_token_ids(model, self.tokenizer)
        pad = self.tokenizer.pad_token_id or 0
        width = max(len(question.prompt) for question in self.questions)
        ids = torch.full((len(self.questions), width), pad)
        mask = torch.zeros_like(ids)
        for place, question in enumerate(self.questions):
            ids[place, width - len(question.prompt) :] = torch.tensor(question.prompt)
            mask[place, width - len(question.prompt) :] = 1
        wish = GenerationConfig(
            max_new_tokens=self.answer_tokens, do_sample=False, pad_token_id=pad, eos_token_id=sorted(ends),
            bos_token_id=None, repetition_penalty=1.0, use_cache=True,
        )  # fmt: skip
        made = model.generate(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=wish
        )[:, width:].tolist()
        return [_cut(row, ends) for row in made]


def _number(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _cut(ids: list[int], ends: frozenset[int]) -> tuple[list[int], bool]:
    place = next((place for place, token in enumerate(ids) if token in ends), None)
    return (ids, False) if place is None else (ids[:place], True)


def repetition(ids: Sequence[int], n: int = 4) -> float:
    """Share of an answer's n-grams that have come before in it (1 - distinct-n, Li et al. 2016, arXiv 1510.03055)."""
    grams = [tuple(ids[place : place + n]) for place in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@contextmanager
def _examined(model: Any, *, bf16: bool) -> Iterator[None]:
    import torch

    from tunesmith.training.held_out import resting

    with resting(model), torch.no_grad(), torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bf16):
        yield


def general_rows(tokenizer: Any, count: int, longest: int) -> tuple[TokenRow, ...]:
    """The first `count` rows of the general set (English and Chinese by turns) through the model's template.

    Rows of more than `longest` tokens, or that the template refuses, are left out; the diagnosis says what it then cannot
    judge.
    """
    import numpy as np

    from tunesmith.data.dataset import TokenRow
    from tunesmith.data.render import render

    rows = []
    for line in GENERAL.read_text(encoding="utf-8").splitlines()[:count]:
        row = json.loads(line)
        turns = (Message("user", row["question"]), Message("assistant", row["answer"]))
        with suppress(DataError):
            made = render(Conversation(turns, GENERAL.name), tokenizer, longest)
            rows.append(TokenRow(np.array(made.ids), np.array(made.trained)))
    return tuple(rows)


def end_rows(rows: Rows, tokenizer: Any) -> tuple[TokenRow, ...]:
    """END_ROWS short rows with nothing trained but the special token that ends the last answer; others are left out."""
    from tunesmith.data.dataset import TokenRow, spread

    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    chosen = []
    for number in spread(len(rows), END_CANDIDATES):
        row = rows[number]
        last = int(row.trained.nonzero()[0].max()) if row.trained.any() else 0
        if last and int(row.ids[last]) in special:
            only = row.trained & False
            only[last] = True
            chosen.append(TokenRow(row.ids, only))
    return tuple(sorted(chosen, key=lambda row: len(row.ids))[:END_ROWS])


def sample_questions(rows: Rows, count: int, prompt_tokens: int, answer_tokens: int) -> tuple[Question, ...]:
    """`count` different questions of at most so many tokens, spread over the rows, with different answers that are as short."""
    from tunesmith.data.dataset import spread

    found: dict[tuple[int, ...], Question] = {}
    prompts: set[tuple[int, ...]] = set()
    for number in spread(len(rows), 20 * count):
        question = _question(rows[number])
        if not question or len(question.prompt) > prompt_tokens or len(question.reference) > answer_tokens:
            continue
        if tuple(question.prompt) not in prompts:
            prompts.add(tuple(question.prompt))
            found.setdefault(tuple(question.reference), question)
    chosen = list(found.values())
    return tuple(chosen[place] for place in spread(len(chosen), count))


def _question(row: TokenRow) -> Question | None:
    """The conversation up to the last trained turn, and that turn."""
    trained = row.trained.tolist()
    starts = [here + 1 for here, (before, now) in enumerate(pairwise(trained)) if now and not before]
    if not starts:
        return None
    ids = row.ids.tolist()
    end = next((place for place in range(starts[-1], len(ids)) if not trained[place]), len(ids))
    return Question(ids[: starts[-1]], ids[starts[-1] : end])
