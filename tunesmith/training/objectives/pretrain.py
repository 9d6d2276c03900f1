"""Continued pre-training on plain text: the mean cross entropy of every token."""

from __future__ import annotations

from typing import ClassVar, Literal

from tunesmith.core.config import Config
from tunesmith.core.examples import Kind
from tunesmith.training.objectives.sft import Sft


class Pretrain(Config):
    """Learn to continue plain text; documents are laid end to end and cut at the cutoff."""

    kind: Literal["pretrain"] = "pretrain"
    """Continued pre-training on plain text."""

    ROWS: ClassVar[Kind] = "text"
    NATS_A_TOKEN: ClassVar[bool] = True
    uses_reference: ClassVar[bool] = False
    count = Sft.count
    loss = Sft.loss
