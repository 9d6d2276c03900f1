"""The rows of LLaMA-Factory's datasets: read, drawn and converted; or its own files, where our reader sees the same in them."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError
from tunesmith.core.examples import Conversation, Example, Feedback, Preference
from tunesmith.core.files import read_jsonl
from tunesmith.data.formats import FORMATS as READERS
from tunesmith.data.rows import read_rows
from tunesmith.data.source import read_examples
from tunesmith.migration.layouts import FORMATS, Named, Shape, as_ours

NAMES = {
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output", "history": "history", "system": "system"},
    "sharegpt": {"messages": "conversations", "system": "system", "tools": "tools"},
    "openai": {"messages": "messages", "tools": "tools"},
}  # fmt: skip
"""Layout -> LLaMA-Factory's name of a column -> ours."""
PLACEHOLDER = re.compile(r"\{\{\s*(?:name|author)\s*\}\}")

Row = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """The rows of some datasets together, for one purpose."""

    shape: Shape
    parts: tuple[tuple[Named, list[tuple[Row, str]]], ...]
    """Every dataset with its rows as they are, and where each came from."""
    drawn: bool
    """Whether only some of the rows were taken, or some twice."""

    @property
    def count(self) -> int:
        """How many rows."""
        return sum(len(rows) for _, rows in self.parts)

    @property
    def format(self) -> str:
        """Our format of the converted rows."""
        return FORMATS[self.shape.kind]

    def converted(self) -> Iterator[Row]:
        """The rows in our layout, each with its `source`."""
        for named, rows in self.parts:
            for row, source in rows:
                yield {**as_ours(row, named, self.shape), "source": source}

    def own_files(self) -> Row | None:
        """Our dataset on LLaMA-Factory's own files; None where our reader would see anything else than it does in them."""
        first = self.parts[0][0]
        looks = [(named.formatting, named.columns, named.ranking) for named, _ in self.parts]
        if self.drawn or any(look != looks[0] for look in looks):
            return None
        layout = first.formatting if self.shape.kind == "conversation" else self.format
        paths = [str(file) for named, _ in self.parts for file in named.files]
        seen, problems = self._read()
        renamed = {ours: theirs for ours, theirs in _columns(first, self.shape.kind).items() if ours != theirs}
        for columns in ({}, renamed):
            try:
                reading = read_examples(paths, layout, columns)  # pyright: ignore[reportArgumentType] - a format by its name
            except DataError:
                continue  # not a file that our reader takes like this
            if problems == len(reading.problems) and seen == [_said(example) for example in reading.examples]:
                return {"path": paths, "format": layout, **({"columns": columns} if columns else {})}
        return None

    def _read(self) -> tuple[list[Any], int]:
        """What the converted rows say to our reader, and how many say nothing."""
        reader, seen, problems = READERS[self.format], [], 0
        for row in self.converted():
            if any(row.get(column) is None for column in reader.REQUIRED):
                problems += 1
                continue
            try:
                seen.append(_said(reader.read(row, "")))
            except DataError:
                problems += 1
        return seen, problems

    def placeholders(self) -> Iterator[tuple[str, str]]:
        """(dataset, what there is to say) where rows hold names that were meant to be filled in."""
        for named, rows in self.parts:
            texts = [text for row, _ in rows if PLACEHOLDER.search(text := str(row))]
            if texts:
                marks = ", ".join(sorted({mark for text in texts for mark in PLACEHOLDER.findall(text)}))
                yield (
                    named.name,
                    (
                        f"{marks} stand in {len(texts)} of {len(rows)} rows and are trained as they stand, by LLaMA-Factory too. "
                        f"Put your names in their place in a copy of the file"
                    ),
                )


def _columns(named: Named, kind: str) -> dict[str, str]:
    """Our name of a column -> the name in the rows."""
    names = dict(NAMES[named.formatting])
    if kind == "text":
        names = {"prompt": "text"} if named.formatting == "alpaca" else {}
    if kind == "preference":
        names.pop("response", None)
        names |= {"chosen": "chosen", "rejected": "rejected"}
    if kind == "feedback":
        names["kto_tag"] = "label"
    found = {ours: named.columns.get(theirs) for theirs, ours in names.items()}
    return {ours: theirs for ours, theirs in found.items() if theirs}


def draw(datasets: list[Named], shape: Shape, limit: int | None, seed: int) -> Rows:
    """The rows of the datasets, as many as num_samples and max_samples say, each set for itself.

    Raises DataError for a file that cannot be read.
    """
    whole = [(named, _some(named, seed)) for named in datasets]
    parts = tuple((named, rows[:limit]) for named, rows in whole)
    cut = limit is not None and any(len(rows) > limit for _, rows in whole)
    return Rows(shape, parts, cut or any(named.samples for named in datasets))


def _some(named: Named, seed: int) -> list[tuple[Row, str]]:
    rows = [row for file in named.files for row in _read(file)]
    if not named.samples:
        return rows
    chance = random.Random(seed)  # noqa: S311 - an order, not a secret
    rest = max(named.samples - len(rows), 0)
    return [*chance.sample(rows, min(named.samples, len(rows))), *chance.choices(rows, k=rest)]


def _read(path: Path) -> Iterator[tuple[Row, str]]:
    """Rows as LLaMA-Factory's reader has them: JSON lines may stand in .json, and a line of .txt is a row."""
    if path.suffix == ".txt":
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        yield from (({"text": line}, f"{path.name}:{number}") for number, line in enumerate(lines, 1) if line.strip())
    elif path.suffix == ".json" and _begins_with(path, "{"):
        for number, row in read_jsonl(path):
            if not isinstance(row, dict):
                raise DataError(
                    f"{path}:{number}", "a row must be an object with named columns", got=type(row).__name__
                )
            yield row, f"{path.name}:{number}"
    else:
        yield from read_rows([str(path)])


def _begins_with(path: Path, mark: str) -> bool:
    with path.open("rb") as file:
        return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == mark.encode()


def _said(example: Example) -> Any:
    """What an example says, wherever it came from."""
    if isinstance(example, Conversation):
        return example.messages, example.tools
    if isinstance(example, Preference):
        return _said(example.chosen), _said(example.rejected)
    return (_said(example.judged), example.good) if isinstance(example, Feedback) else example.text
