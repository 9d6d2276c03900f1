"""Models that something wraps, to spread them over processes. Knows no library that does."""

from __future__ import annotations

from typing import Any


def unwrapped(model: Any) -> Any:
    """The model itself: what spreads a model over processes keeps it as its submodule `module`.

    Forward passes go through the wrapper; everything else is asked of the model.
    """
    return model._modules.get("module", model)
