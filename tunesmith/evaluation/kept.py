"""Answers kept in the cache: the same weights, asked the same in the same way, need not answer again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith import engines
from tunesmith.core import files, hardware
from tunesmith.core.errors import DataError
from tunesmith.core.hub import cache_folder
from tunesmith.core.kept import version_of
from tunesmith.evaluation.answers import Answer, Question
from tunesmith.models.load import Found

LIBRARIES = ("torch", "transformers", "peft", "xllamacpp")
"""A new version of any of them may answer in other words, and so may a change of our engines."""


def place(found: Found, questions: Sequence[Question], how: dict[str, Any]) -> Path:
    """The file of these answers. Its name holds every byte of the model, the messages, `how` and the libraries."""
    asked = [[message.as_dict() for message in question.messages] for question in questions]
    facts = {
        "files": _files(found), "asked": asked, "how": how, "libraries": [version_of(name) for name in LIBRARIES],
        "machine": [hardware.probe().device, hardware.probe().native_bf16],  # what `precision: auto` depends on
        "engines": files.sources_sha256(engines),
    }  # fmt: skip
    return cache_folder() / "answers" / f"{files.fingerprint(facts)}.json"


def _files(found: Found) -> list[str]:
    folders = [folder for folder in (found.base, *found.under, found.adapter) if folder and folder.is_dir()]
    paths = [path for folder in folders for path in sorted(folder.iterdir()) if path.is_file()]
    if found.gguf:
        paths.append(found.gguf)
    return [f"{path.name} {files.sha256(path)}" for path in paths]


def keep(path: Path, answers: Sequence[Answer], engine: str) -> None:
    """Write the answers' texts and the name of the engine that made them. Raises OSError where the cache is not writable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, {"engine": engine, "answers": [[answer.text, answer.finish] for answer in answers]})


def recall(path: Path, questions: Sequence[Question]) -> tuple[list[Answer], str] | None:
    """The answers kept in `path` and their engine; None where there are none. Raises DataError for a broken file."""
    if not path.is_file():
        return None
    kept = files.read_json(path)
    if not isinstance(kept, dict) or {"answers", "engine"} - set(kept) or len(kept["answers"]) != len(questions):
        raise DataError(str(path), "does not hold the answers that its name says", do="Remove the file")
    pairs = zip(questions, kept["answers"], strict=True)
    return [replace(Answer(question), text=text, finish=finish) for question, (text, finish) in pairs], kept["engine"]
