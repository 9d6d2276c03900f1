"""How many of the last layers a method trains, as it is typed: a number, or `auto` until brief trainings have settled it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

LastLayers = Annotated[int, Field(ge=1)] | Literal["auto"] | None
OPTIONS = {"lora": "last_layers", "qlora": "last_layers", "bottleneck": "last_layers", "freeze": "layers"}
"""Method -> its option."""


def known(wish: int | Literal["auto"] | None) -> int | None:
    """The number; None for all layers, as which `auto` counts before it is settled: nothing needs more memory."""
    return None if wish == "auto" else wish
