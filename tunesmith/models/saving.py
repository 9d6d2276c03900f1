"""Weights to disk: what safetensors says of a full disk becomes our error. Knows no layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunesmith.core.errors import CapacityError

DISK_ERRORS = ("os error 28", "os error 27", "os error 122")  # no space left, file too large, quota


@contextmanager
def disk_errors(path: Path, do: str = "Free some space and start again") -> Iterator[None]:
    """Raise CapacityError where safetensors wraps the system's "no space left" in an error of its own."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        if any(said in str(error) for said in DISK_ERRORS):
            said = str(error).rpartition(": ")[2]
            raise CapacityError(str(path), f"cannot be written: {said}", do=do) from None
        raise
