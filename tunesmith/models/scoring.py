"""Reward models: a decoder whose head gives one number for an answer, read at the token that ends it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core.examples import IGNORED
from tunesmith.models.load import PRECISIONS, Found, load_model
from tunesmith.models.overlay import is_overlay
from tunesmith.models.split import entered, entry_of
from tunesmith.models.virtual import leading_logits
from tunesmith.models.wrapped import unwrapped

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

HEAD = "score"
"""What transformers calls the head of a sequence classifier."""


def load_reward_model(found: Found, precision: PRECISIONS = "fp32", *, device: str = "cpu") -> PreTrainedModel:
    """Load a reward model, or a plain model with a new head of random weights (fp32) where it has none yet.

    Raises ModelError as `load_model` does.
    """
    return load_model(replace(found, is_reward=True), precision, device=device)


def reward_model_bytes(found: Found, precision: PRECISIONS) -> int:
    """Bytes that `load_reward_model` holds, from the headers of its files: the base without the head over words, in
    `precision`, and its adapter in fp32. Weights trained on their own take the place of the base's.
    """
    base = sum(size for name, size in _sizes(found.base) if not name.startswith("lm_head."))
    beside = 0 if found.adapter is None or is_overlay(found.adapter) else sum(size for _, size in _sizes(found.adapter))
    return (2 if precision == "bf16" else 4) * base + 4 * beside


def _sizes(folder: Path) -> Iterator[tuple[str, int]]:
    """(name, how many numbers) of every tensor in a folder."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            names = file.keys()
            yield from ((name, math.prod(file.get_slice(name).get_shape())) for name in names)


def head_of(model: Any) -> torch.nn.Module:
    """The module that makes scores of hidden states, whatever wraps the model."""
    return next(module for name, module in model.named_modules() if name.rpartition(".")[2] == HEAD)


def task_of(model: Any) -> str:
    """What peft calls the task of a model: its adapters save the head of a reward model beside the matrices."""
    return "SEQ_CLS" if hasattr(model, HEAD) else "CAUSAL_LM"


def new_parameters(model: Any) -> list[Any]:
    """Those of a reward model's head, which every method trains; none for other models."""
    return list(getattr(model, HEAD).parameters()) if hasattr(model, HEAD) else []


def scores(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The score of every line of a batch (input_ids, attention_mask, labels, each (B, T)): (B,) fp32.

    Read at the last trained token, which ends the answer. transformers would look for the last token that is no padding,
    and the pad token is the end token in many models.
    """
    import torch

    seen: list[Any] = []
    handle = head_of(model).register_forward_hook(lambda module, given, made: seen.append(made))
    try:
        with entered(unwrapped(model), batch.get("states"), entry_of(batch)):
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    finally:
        handle.remove()
    trained = batch["labels"] != IGNORED
    last = trained.shape[1] - 1 - trained.flip(1).int().argmax(dim=1)
    last = last + leading_logits(model)
    return seen[0][torch.arange(len(last), device=last.device), last, 0].float()
