"""LLaMA-Factory's YAML of any year, with its dataset_info.json, into our configs; a verdict for every key.

`read` writes nothing and knows no verb: it is told which options our configs have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.core.errors import UsageError
from tunesmith.migration.answers import read_answers
from tunesmith.migration.datasets import Written, read_datasets
from tunesmith.migration.groups import grouped
from tunesmith.migration.jobs import BOARD, FIRST, find_jobs
from tunesmith.migration.names import MAPPED, RENAMED
from tunesmith.migration.objectives import read_objective
from tunesmith.migration.processes import read_processes
from tunesmith.migration.schedule import read_schedule
from tunesmith.migration.sheet import Implied, Ours, Verdict, open_sheet, settle
from tunesmith.migration.weights import read_method, read_model

VERBS = ("train", "evaluate", "export", "chat", "serve")
"""What a file can become."""


@dataclass(frozen=True, slots=True)
class Migrated:
    """What became of a file."""

    source: Path
    documents: dict[str, dict[str, Any]]
    """Verb -> our config, in the order in which they are run."""
    origins: dict[tuple[str, str], str]
    """(verb, dotted option) -> where its value comes from."""
    outs: dict[str, str]
    """Verb -> the folder in which the file wants its result."""
    verdicts: tuple[Verdict, ...]
    """One for every key, and for every field of the datasets that it names."""
    implied: tuple[Implied, ...]
    """What LLaMA-Factory takes where the file says nothing, and Tunesmith would not."""
    rows: Written
    """Name of a file -> the rows that have to be written into it."""

    @property
    def lost(self) -> tuple[Verdict, ...]:
        """The wishes that cannot be kept: the result would be another one."""
        return tuple(verdict for verdict in self.verdicts if verdict.lost)


def is_llamafactory(document: Mapping[str, Any]) -> bool:
    """Whether a file is LLaMA-Factory's: it names model_name_or_path, or several of its keys and none of `model`."""
    known = {*MAPPED, *RENAMED, *grouped()} - {"dataset", "seed"}
    return "model_name_or_path" in document or ("model" not in document and len(known & set(document)) > 1)


def read(document: Mapping[str, Any], source: Path, ours: Ours, into: Path) -> Migrated:
    """Every key of a file, with a verdict; our configs; rows that have to be written into the folder `into`.

    Raises UsageError for a file that is none of LLaMA-Factory's or names no model, DataError for rows that cannot be read.
    """
    _check(document, source)
    sheet = open_sheet(document, source.parent, ours, into)
    find_jobs(sheet, source.stem)
    read_model(sheet)
    read_method(sheet)
    read_objective(sheet)
    read_processes(sheet)
    rows = read_datasets(sheet)
    read_schedule(sheet)
    read_answers(sheet)
    settle(sheet)
    order = {name: place for place, name in enumerate(document)}
    verdicts = sorted(sheet.verdicts, key=lambda verdict: order.get(verdict.key, len(order)))
    documents = {verb: sheet.documents[verb] for verb in sheet.verbs}
    return Migrated(
        source, documents, sheet.origins, sheet.outs, tuple(verdicts), tuple(sheet.implied), rows
    )  # fmt: skip


def _check(document: Mapping[str, Any], source: Path) -> None:
    if any(str(key).startswith(BOARD) for key in document):
        do = "Take training_args.yaml, which lies beside it in the folder of a run"
        raise UsageError(str(source), "is a saved form of LLaMA Board, not a config", do=do)
    if any(key in document for key in FIRST):
        do = "Write it with the keys of its examples (model_name_or_path, stage, ...)"
        raise UsageError(str(source), "is in the layout that LLaMA-Factory calls v1, which is not read", do=do)
    if not is_llamafactory(document):
        got = ", ".join(map(str, document)) or "no keys"
        raise UsageError(str(source), "is no file of LLaMA-Factory: no model_name_or_path", got=got)
