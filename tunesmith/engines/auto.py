"""The engine that fits what the model is: a GGUF file, safetensors, or the address of a server."""

from __future__ import annotations

from typing import Literal

from tunesmith.core.config import Config
from tunesmith.engines.contract import Engine
from tunesmith.engines.llama_cpp import LlamaCpp
from tunesmith.engines.remote import Remote
from tunesmith.engines.transformers import Transformers
from tunesmith.models.load import Found, find


class Auto(Config):
    """Choose by the model: llama_cpp for GGUF, transformers for safetensors, remote for an http address."""

    kind: Literal["auto"] = "auto"

    def open(self, model: str | Found) -> Engine:
        """Open the engine that fits; its `name` says which. Raises what that engine's `open` raises."""
        if isinstance(model, str) and is_address(model):
            return Remote(address=model).open("")
        found = find(model) if isinstance(model, str) else model
        return LlamaCpp().open(found) if found.gguf else Transformers().open(found)


def is_address(model: str) -> bool:
    """Whether a model is named by the address of a server."""
    return model.startswith(("http://", "https://"))
