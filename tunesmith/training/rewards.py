"""What scores answers: reward models and functions of a file. Knows tokens and texts, not how answers are drawn."""

from __future__ import annotations

import math
import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field

from tunesmith.core.errors import DataError, ModelError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunesmith.data.dataset import TokenRow
    from tunesmith.models.load import Found

Reward = Annotated[
    dict[str, float],
    BeforeValidator(lambda value: {value: 1.0} if isinstance(value, str) else value),
    Field(min_length=1),
]

MISTAKES = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, OSError, TypeError, ValueError)
"""What a function of the user's raises by mistake; it is named as its own."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """An answer that was drawn: prompt and answer as one row of tokens, and the row of the dataset it answers."""

    sequence: TokenRow
    row: dict[str, Any]
    ended: bool
    """By itself, not at the longest answer."""


Source = Callable[[Sequence[Drawn]], list[float]]


def open_rewards(wish: dict[str, float], tokenizer: PreTrainedTokenizerBase, precision: Any) -> Source:
    """A function from answers to rewards: the weighted sum over all sources.

    Raises UsageError for a function that is not there, ModelError for what is no reward model or has other tokens.
    """
    sources = [(_open(source, tokenizer, precision), weight) for source, weight in wish.items()]

    def score(answers: Sequence[Drawn]) -> list[float]:
        found = [[weight * value for value in source(answers)] for source, weight in sources]
        return [sum(values) for values in zip(*found, strict=True)]

    return score


def held_bytes(wish: dict[str, float], precision: Literal["fp32", "bf16"]) -> int:
    """Bytes of the reward models that are held beside the policy; functions take none.

    Raises ModelError for what is no reward model.
    """
    from tunesmith.models.scoring import reward_model_bytes

    return sum(reward_model_bytes(_find(source), precision) for source in wish if _as_function(source) is None)


def check_rewards(wish: dict[str, float]) -> None:
    """Raise, before any long work, UsageError for a file that is not there and ModelError for what is no reward model."""
    for source in wish:
        function = _as_function(source)
        if function is None:
            _find(source)
        elif not function[0].is_file():
            raise UsageError("objective.reward", "no such file", got=str(function[0]))


def _as_function(source: str) -> tuple[Path, str] | None:
    """(file, name) of `file.py:function`; None for a model. Raises UsageError for a file without a name."""
    path, colon, name = source.rpartition(":")
    if source.endswith(".py"):
        raise UsageError("objective.reward", "names no function of the file", got=source, do=f"Type {source}:NAME")
    return (Path(path), name) if colon and path.endswith(".py") else None


def _find(source: str) -> Found:
    from tunesmith.models.load import find, gives_scores

    found = find(source)
    if not gives_scores(found):
        raise ModelError(source, "is no reward model", do="Train one by objective reward")
    return found


def _open(source: str, tokenizer: PreTrainedTokenizerBase, precision: Any) -> Source:
    if function := _as_function(source):
        return _function(*function, tokenizer)
    return _model(source, tokenizer, precision)


def _function(path: Path, name: str, tokenizer: PreTrainedTokenizerBase) -> Source:
    """`name(prompt, answer, row) -> number`: two texts, and the row as the dataset has it."""
    function = _names_in(path).get(name)
    if not callable(function):
        raise UsageError(
            "objective.reward", f"{path} has no function {name!r}", do="Define it: name(prompt, answer, row)"
        )

    def one(answer: Drawn) -> float:
        ids, trained = answer.sequence.ids, answer.sequence.trained
        prompt, text = (tokenizer.decode(part, skip_special_tokens=True) for part in (ids[~trained], ids[trained]))
        try:
            value = function(prompt, text, answer.row)
        except MISTAKES as error:
            raise DataError(f"{path}:{name}", f"raised {type(error).__name__}: {error}") from error
        if not isinstance(value, Real) or not math.isfinite(value):
            what = "must return a number" + (" that is finite" if isinstance(value, Real) else "")
            raise DataError(f"{path}:{name}", what, got=value)
        return float(value)

    return lambda answers: [one(answer) for answer in answers]


def _names_in(path: Path) -> dict[str, Any]:
    """What a file of the user's defines. Raises UsageError where it cannot be run."""
    try:
        return runpy.run_path(str(path))
    except SyntaxError as error:
        raise UsageError("objective.reward", f"{path}: cannot be read: line {error.lineno}: {error.msg}") from error
    except (ImportError, *MISTAKES) as error:
        raise UsageError("objective.reward", f"{path}: raised {type(error).__name__}: {error}") from error


def _model(source: str, tokenizer: PreTrainedTokenizerBase, precision: Any) -> Source:
    from tunesmith.data.batch import pad_sequences
    from tunesmith.data.render import template_fingerprint
    from tunesmith.models.load import load_tokenizer
    from tunesmith.models.scoring import load_reward_model, scores

    found = _find(source)
    if template_fingerprint(load_tokenizer(found)) != template_fingerprint(tokenizer):
        raise ModelError(source, "reads other tokens than the model that is trained", do="Train both on one base")
    import torch

    from tunesmith.core.hardware import probe

    device, pad_token = probe().device, cast(int, tokenizer.pad_token_id or 0)
    model = load_reward_model(found, precision, device=device).eval()

    def score(answers: Sequence[Drawn], at_once: int = 16) -> list[float]:
        order = sorted(range(len(answers)), key=lambda place: len(answers[place].sequence.ids))
        values = [0.0] * len(answers)
        for start in range(0, len(order), at_once):
            places = order[start : start + at_once]
            batch = pad_sequences([answers[place].sequence for place in places], pad_token)
            with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                found = scores(model, {name: value.to(device) for name, value in batch.items()}).tolist()
            for place, value in zip(places, found, strict=True):
                values[place] = value
        return values

    return score
