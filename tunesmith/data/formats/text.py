"""text rows: plain text in `text`, for pre-training."""

from __future__ import annotations

from typing import Any

from tunesmith.core.errors import DataError
from tunesmith.core.examples import Kind, Text

KIND: Kind = "text"
REQUIRED = ("text",)
COLUMNS = REQUIRED


def matches(columns: set[str]) -> bool:
    """Whether a row with these columns is plain text."""
    return "text" in columns


def read(row: dict[str, Any], source: str) -> Text:
    """A row as a document. Raises DataError for what is not text or says nothing."""
    if not isinstance(row["text"], str):
        raise DataError(source, "text must be text", got=row["text"])
    if not row["text"].strip():
        raise DataError(source, "text is empty", do="Remove the row")
    return Text(row["text"], source)
