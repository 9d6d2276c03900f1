"""stub"""

from __future__ import annotations
from typing import Literal
from tunesmith.core.config import Config
from tunesmith.engines.contract import Engine
from tunesmith.models.load import Found


class Transformers(Config):
    kind: Literal["transformers"] = "transformers"

    def open(self, model: str | Found) -> Engine:
        raise NotImplementedError
