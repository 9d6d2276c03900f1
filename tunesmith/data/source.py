"""Where the rows of a job come from, and rows into examples. Says what could not be read, row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tunesmith.core.config import Config
from tunesmith.core.errors import DataError, UsageError, did_you_mean
from tunesmith.core.examples import Conversation, Example, Kind
from tunesmith.data.formats import FORMATS, FormatName, detect
from tunesmith.data.rows import read_rows


class Source(Config):
    """Rows of a job; a bare path or list of paths is short for `{path: ...}`."""

    path: tuple[str, ...] = Field(min_length=1)
    """Files or folders of rows (json, jsonl, csv, tsv, parquet; txt: a document), or one prepared Dataset folder."""
    format: FormatName = "auto"
    """Layout of the rows; auto looks at the first row and says what it saw."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Names of your columns where they differ: {instruction: question, output: answer}."""
    held_out: tuple[str, ...] = ()
    """Files whose rows are held out for evaluation; where empty, a share of the rows is split off."""
    overlong: Literal["truncate", "drop"] = "truncate"
    """What to do with rows longer than the cutoff: cut their end off, or leave them out."""
    max_lost: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Stop when a larger share of the rows would be dropped or truncated."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if isinstance(value, str | list | tuple):
            value = {"path": value}
        if isinstance(value, dict):
            value = {k: [v] if k in {"path", "held_out"} and isinstance(v, str) else v for k, v in value.items()}
        return value


@dataclass(frozen=True, slots=True)
class Reading:
    """Examples that could be read, and why the other rows could not (source, reason)."""

    format: str
    examples: list[Example]
    problems: list[tuple[str, str]] = field(default_factory=list)

    @property
    def kind(self) -> Kind:
        """What all of its rows are."""
        return FORMATS[self.format].KIND


def read_conversations(
    paths: Sequence[str], layout: FormatName = "auto", columns: Mapping[str, str] | None = None
) -> tuple[list[Conversation], list[tuple[str, str]]]:
    """Rows that must be dialogue: the conversations, and why the others could not be read.

    Raises DataError for rows of another kind, and as `read_examples` does.
    """
    reading = read_examples(paths, layout, columns)
    if reading.kind != "conversation":
        raise DataError(str(paths[0]), "must hold questions with answers", got=f"{reading.format} rows")
    return [example for example in reading.examples if isinstance(example, Conversation)], reading.problems


def read_examples(
    paths: Sequence[str], layout: FormatName = "auto", columns: Mapping[str, str] | None = None
) -> Reading:
    """Read all rows of some files.

    Rows that cannot be an example are named in `problems`, not raised. Raises DataError for a missing, empty or
    broken file and when the first row has no known layout; UsageError when `columns` maps a name no format has.
    """
    mapping = dict(columns or {})
    name, examples, problems = layout, [], []
    for raw, source in read_rows(paths):
        row = _renamed(raw, mapping, source)
        if name == "auto":
            name = detect(row, source)
        try:
            examples.append(_read(name, row, source))
        except DataError as error:
            problems.append((source, str(error).removeprefix(f"{source}: ")))
    _check_mapping(mapping, name)
    return Reading(name, examples, problems)


def _check_mapping(mapping: Mapping[str, str], name: str) -> None:
    known = (*FORMATS[name].COLUMNS, *(["expect"] if FORMATS[name].KIND == "conversation" else []))
    for column in mapping:
        if column not in known:
            raise UsageError("dataset.columns", f"{name} rows have no {column!r}", do=did_you_mean(column, known))


def _renamed(row: dict[str, Any], mapping: Mapping[str, str], source: str) -> dict[str, Any]:
    for column, theirs in mapping.items():
        if theirs not in row:
            raise DataError(source, f"has no column {theirs!r}", do=did_you_mean(theirs, [str(key) for key in row]))
        row = {**row, column: row[theirs]}
    return row


def _read(name: str, row: dict[str, Any], source: str) -> Example:
    layout = FORMATS[name]
    if not _is_unicode(row):
        raise DataError(
            source, "holds half a character (a lone surrogate), which no file can hold", do="Remove the row"
        )
    missing = [column for column in layout.REQUIRED if row.get(column) is None]
    if missing:
        raise DataError(source, f"has no {missing[0]}")
    example: Example = layout.read(row, source)
    if not isinstance(example, Conversation):
        return example
    expect = row.get("expect") or []
    expect = [expect] if isinstance(expect, str) else expect
    if not isinstance(expect, list) or not all(isinstance(part, str) for part in expect):
        raise DataError(source, "expect must be text or a list of texts", got=expect)
    return replace(example, expect=tuple(expect))


def _is_unicode(value: Any) -> bool:
    """Whether all text of a row can be written."""
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)
    if isinstance(value, dict):
        return all(_is_unicode(part) for pair in value.items() for part in pair)
    return not isinstance(value, list | tuple) or all(map(_is_unicode, value))
