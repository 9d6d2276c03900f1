"""Rows that were prepared in the same way before: found by their bytes and by all that decides what becomes of them."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import core, data
from tunesmith.core import files, kept
from tunesmith.core.artifacts import Dataset
from tunesmith.core.errors import CapacityError, DataError
from tunesmith.data.dataset import FACTS, open_dataset
from tunesmith.data.prepare import Split, write_dataset
from tunesmith.data.render import template_fingerprint
from tunesmith.data.rows import data_files

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedTokenizerBase

    from tunesmith.data.source import Source

LIBRARIES = ("transformers", "tokenizers", "jinja2", "pyarrow")
"""A new version of any of them may read rows or cut text otherwise."""


def prepare_rows(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    target: Path,
    *,
    cutoff: int,
    split: Split,
    said: Callable[[str], object] = lambda text: None,
) -> Dataset:
    """As `write_dataset`, but what was made of the same rows in the same way before is copied into `target`.

    A copy and no link: whoever edits the rows of a run changes those of no other.
    """
    read = _bytes_of(source)
    how = {"source": source.model_dump(exclude={"path", "held_out"}), "cutoff": cutoff, "split": asdict(split)}
    entry = kept.shelf("rows") / files.fingerprint({"files": read, **how, **_makers(tokenizer)})
    made = _recall(entry, target, said)
    if made:
        said(f"cache     {made.rows} rows ({made.format}), prepared before, from {entry}")
        return made
    made = write_dataset(source, tokenizer, target, cutoff=cutoff, split=split, said=said)
    if _bytes_of(source) == read:  # else they were changed meanwhile
        _keep(target, entry, said)
    return made


def _bytes_of(source: Source) -> list[list[str]]:
    """Name (the ledger has it) and sha256 of every file, those to train on and those to hold out."""
    return [[f"{path.name} {files.sha256(path)}" for path in data_files(paths)] for paths in (source.path, source.held_out)]  # fmt: skip


def _makers(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What turns rows into tokens: template, tokenizer, libraries, our own code; the day where the template asks for it."""
    backend: Any = tokenizer.backend_tokenizer
    return {
        "template": template_fingerprint(tokenizer), "special": str(tokenizer.special_tokens_map),
        "tokenizer": files.fingerprint(backend.to_str()),
        "libraries": [kept.version_of(name) for name in LIBRARIES],
        "sources": [files.sources_sha256(package) for package in (core, data)],
        "day": date.today() if "strftime_now" in str(tokenizer.chat_template) else None,
    }  # fmt: skip


def _recall(entry: Path, target: Path, said: Callable[[str], object]) -> Dataset | None:
    """Copy an entry; None where there is none. One with a byte that is not as it was written is removed."""
    if not entry.is_dir():
        return None
    try:
        with files.new_folder(target) as folder:
            _copy(entry, folder)
            made = replace(open_dataset(folder), dataset=target)
            (folder / files.MANIFEST).unlink()  # a new one is written: the facts name the folder they are in
            files.write_json(folder / FACTS, {**asdict(made), "dataset": str(target)})
            kept.used(entry / files.MANIFEST)
    except (DataError, FileNotFoundError) as error:
        said(f"cache     not taken, the rows are prepared anew: {error}")
        shutil.rmtree(entry, ignore_errors=True)
        return None
    return made


def _keep(made: Path, entry: Path, said: Callable[[str], object]) -> None:
    """A cache that cannot be written costs the next run its time, and this one nothing."""
    try:
        kept.remove_unused(entry.parent, said, files.MANIFEST)
        size = sum(path.stat().st_size for path in made.iterdir())
        if size + kept.SPARE_BYTES > shutil.disk_usage(made).free:
            said("cache     the prepared rows are not kept: less than 2 GiB would be left on the disk")
            return
        with suppress(FileExistsError), files.new_folder(entry) as folder:  # another run may have been first
            _copy(made, folder)
            (folder / files.MANIFEST).unlink()
    except (CapacityError, OSError) as error:
        said(f"cache     the prepared rows are not kept: {error}")


def _copy(source: Path, target: Path) -> None:
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)
