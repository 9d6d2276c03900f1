"""What is kept under the cache folder: an entry's name says all that it depends on, and what no run uses goes again."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from tunesmith.core.hub import cache_folder

UNUSED_DAYS = 30
"""Entries that no run has read for so long are removed when others are made."""
SPARE_BYTES = 2 << 30
"""Of the disk, left for checkpoints."""


def shelf(kind: str) -> Path:
    """The folder of the entries of one kind."""
    return cache_folder() / kind


def used(mark: Path) -> None:
    """Note that a run reads an entry; `mark` is the file whose time says it."""
    os.utime(mark)


def remove_unused(kept: Path, say: Callable[[str], object], mark: str = "") -> None:
    """Remove entries of a shelf that no run has read for UNUSED_DAYS; `mark` is the file in each whose time says it."""
    before = time.time() - UNUSED_DAYS * 86400
    for entry in list(kept.iterdir()) if kept.is_dir() else []:
        dated = entry / mark if mark else entry
        if dated.is_file() and dated.stat().st_mtime < before:
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
            say(f"removed {entry}: cached, and no run has read it for {UNUSED_DAYS} days")


def version_of(name: str) -> str:
    """The version of an installed library, `none` for one that is not here."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"
