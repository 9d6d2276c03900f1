"""feedback rows: a dialogue in any layout and `label`, true where its last answer is good (as TRL and KTO have it)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tunesmith.core.errors import DataError
from tunesmith.core.examples import Feedback, Kind
from tunesmith.data.formats import alpaca, openai, prompt_completion, sharegpt

KIND: Kind = "feedback"
REQUIRED = ("label",)
LAYOUTS = (openai, sharegpt, prompt_completion, alpaca)
COLUMNS = (*REQUIRED, *dict.fromkeys(column for layout in LAYOUTS for column in layout.COLUMNS))
VERDICTS = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}
"""True and false are 1 and 0 too; a table of text has no other way to say either."""


def matches(columns: set[str]) -> bool:
    """Whether a row with these columns is a dialogue with a verdict."""
    return set(REQUIRED) <= columns and any(layout.matches(columns) for layout in LAYOUTS)


def read(row: dict[str, Any], source: str) -> Feedback:
    """A row as a conversation and its verdict; only the last turn is trained."""
    layout = next((layout for layout in LAYOUTS if layout.matches(set(row))), None)
    if layout is None:
        raise DataError(source, "has a label and no dialogue", got=", ".join(row))
    said = row["label"].strip().lower() if isinstance(row["label"], str) else row["label"]
    if not isinstance(said, bool | int | float | str) or said not in VERDICTS:
        raise DataError(source, "label must be true or false", got=row["label"])
    dialogue = layout.read(row, source)
    if not dialogue.messages:
        raise DataError(source, "has a label and an empty dialogue", do="Remove the row")
    *before, last = dialogue.messages
    if last.role != "assistant":
        raise DataError(source, "ends with no assistant turn that the label could judge", got=last.role)
    context = (replace(message, trained=False) for message in before)
    return Feedback(replace(dialogue, messages=(*context, last)), VERDICTS[said], source)
