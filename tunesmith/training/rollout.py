"""Answers drawn from the policy, scored and made ready for an update. Knows PPO and GRPO by `prepare` and `group` only."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tunesmith.core.errors import UsageError
from tunesmith.data.batch import pad_sequences
from tunesmith.data.dataset import Rows, TokenRow
from tunesmith.models.pissa import START
from tunesmith.training.held_out import resting
from tunesmith.training.rewards import Drawn, Source

if TYPE_CHECKING:
    from tunesmith.training.objectives.grpo import Grpo
    from tunesmith.training.objectives.ppo import Ppo

AT_ONCE = 64
"""Answers drawn side by side."""
HELD_OUT = 64
"""Held-out prompts whose answers are scored at an evaluation, at most."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """How a run draws answers."""

    objective: Ppo | Grpo
    reward: Source
    prompts: dict[str, tuple[Rows, list[dict[str, Any]]]]
    """By split: its rows as tokens, and as the dataset has them."""
    end_ids: frozenset[int]
    pad_token: int
    rows_at_once: int
    seed: int
    precision: str

    def collect(
        self, model: Any, numbers: Sequence[int], step: int
    ) -> tuple[list[list[dict[str, torch.Tensor]]], dict[str, float]]:
        """The updates of a step, each a list of batches, and what was seen: reward, divergence, length, share that ended.

        Answers are drawn at temperature 1 from the policy as it is, by seeds that follow from the run's seed, the step and
        the place, so that a resumed run draws the same ones.
        """
        places = [number for number in numbers for _ in range(self.objective.group)]
        answers = self._draw(model, "train", places, str(step))
        scores = self._scores(answers)
        batches = self._batches(model, answers, scores)
        seen = self.objective.prepare(model, batches)
        return [batches] * self.objective.epochs, {**_seen(answers, scores), **seen}

    def score(self, model: Any) -> dict[str, float]:
        """Mean reward, and divergence in nats an answer where it has a price, on the first held-out prompts.

        Every evaluation draws by the same seeds.
        """
        numbers = range(min(len(self.prompts["held_out"][0]), HELD_OUT))
        answers = self._draw(model, "held_out", numbers, "held out")
        scores = self._scores(answers)
        batches = self._batches(model, answers, scores)
        seen = _seen(answers, scores)
        if self.objective.kl:
            nats = sum(float((batch["old"] - batch["reference"]).sum()) for batch in batches)
            seen["kl"] = nats / len(answers)
        return {f"held_out_{name}": value for name, value in seen.items()}

    def _scores(self, answers: list[Drawn]) -> list[float]:
        penalty = self.objective.unfinished
        return [
            value - (0.0 if answer.ended else penalty)
            for value, answer in zip(self.reward(answers), answers, strict=True)
        ]

    def _draw(self, model: Any, split: str, numbers: Sequence[int], purpose: str) -> list[Drawn]:
        """An answer for each number, drawn side by side."""
        rows, texts = self.prompts[split]
        asked = [question(rows[number]) for number in numbers]
        with resting(model), self._autocast(model):
            said = draw(
                _policy(model),
                asked,
                self.end_ids,
                self.objective.answer_tokens,
                lambda place: _seed(f"{self.seed}:{purpose}:{place}"),
            )
        return [
            Drawn(_as_row(prompt, answer), texts[number], answer[-1] in self.end_ids)
            for number, prompt, answer in zip(numbers, asked, said, strict=True)
        ]

    def _batches(self, model: Any, answers: list[Drawn], scores: list[float]) -> list[dict[str, torch.Tensor]]:
        """Answers of like length together, with what the policy, the reference and the value head say of them now."""
        from tunesmith.models.head import label_losses

        order = sorted(range(len(answers)), key=lambda place: len(answers[place].sequence.ids))
        batches, device = [], _policy(model).device
        for start in range(0, len(order), self.rows_at_once):
            places = order[start : start + self.rows_at_once]
            made = pad_sequences([answers[place].sequence for place in places], self.pad_token)
            batch = {name: value.to(device) for name, value in made.items()}
            batch["place"] = torch.tensor(places, device=device)
            batch["score"] = torch.tensor([scores[place] for place in places], device=device)
            with torch.no_grad(), resting(model), self._autocast(model):
                if self.objective.has_critic:
                    losses, batch["values"] = model(batch)
                else:
                    losses = label_losses(model, batch)
                batch["old"] = -losses
                with without_adapter(_policy(model)) if self.objective.kl else nullcontext():
                    batch["reference"] = -label_losses(_policy(model), batch) if self.objective.kl else batch["old"]
            batches.append(batch)
        return batches

    def _autocast(self, model: Any) -> Any:
        return torch.autocast(_policy(model).device.type, torch.bfloat16, enabled=self.precision == "bf16")


def without_adapter(policy: Any) -> Any:
    """The untrained model for a while: the adapter switched off.

    Raises UsageError for a method whose untrained model is gone.
    """
    from tunesmith.models.adapter import adapters_of, switched_off

    if bottlenecks := adapters_of(policy):
        return switched_off(bottlenecks)
    if not hasattr(policy, "disable_adapter"):
        raise UsageError(
            "objective.kl", "the untrained model is the one with its adapter switched off, and this method has none",
            do="Use method lora, or --objective.kl 0",
        )  # fmt: skip
    if hasattr(policy, START):
        raise UsageError(
            "method.init", "with pissa a part of the untrained model is in the adapter, which cannot be switched off alone",
            do="Use --method.init lora, or --objective.kl 0",
        )  # fmt: skip
    return policy.disable_adapter()


def draw(
    policy: Any, prompts: list[list[int]], end_ids: frozenset[int], tokens: int, seed_of: Callable[[int], int]
) -> list[list[int]]:
    """Token ids of one drawn answer to each prompt, its end token included where it ended."""
    from tunesmith.engines.batch import Batch, Row
    from tunesmith.engines.contract import Sampling

    rows = [
        Row(Sampling(max_tokens=tokens, temperature=1.0, seed=seed_of(place)), prompt)
        for place, prompt in enumerate(prompts)
    ]
    batch, waiting = Batch(policy), list(reversed(rows))
    while waiting or batch.rows:
        while waiting and len(batch.rows) < AT_ONCE:
            batch.add(waiting.pop())
        for row in batch.step():
            row.is_over = row.ids[-1] in end_ids or len(row.ids) >= tokens
    return [row.ids for row in rows]


def question(row: TokenRow) -> list[int]:
    """The tokens before the last trained turn of a row."""
    ids, trained = row.ids.tolist(), row.trained.tolist()
    last = len(trained) - 1 - trained[::-1].index(True)
    start = next((place + 1 for place in range(last, -1, -1) if not trained[place]), 0)
    return ids[:start]


def _as_row(prompt: list[int], answer: list[int]) -> TokenRow:
    import numpy as np

    trained = np.zeros(len(prompt) + len(answer), dtype=bool)
    trained[len(prompt) :] = True
    return TokenRow(np.asarray(prompt + answer, dtype=np.int32), trained)


def _policy(model: Any) -> Any:
    return getattr(model, "policy", model)


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "little")


def _seen(answers: list[Drawn], scores: list[float]) -> dict[str, float]:
    count = len(answers)
    return {
        "reward": sum(scores) / count,
        "answer_tokens": sum(int(answer.sequence.trained.sum()) for answer in answers) / count,
        "ended": sum(answer.ended for answer in answers) / count,
    }
