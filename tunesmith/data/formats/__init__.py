"""How rows look. Each file is one layout: the KIND of its rows, COLUMNS it knows, `matches(columns)`, and `read(row, source)`."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Literal

from tunesmith.core.errors import DataError, did_you_mean
from tunesmith.data.formats import alpaca, feedback, openai, preference, prompt_completion, sharegpt, text

FORMATS: dict[str, ModuleType] = {
    "preference": preference,
    "feedback": feedback,
    "openai": openai,
    "sharegpt": sharegpt,
    "prompt_completion": prompt_completion,
    "alpaca": alpaca,
    "text": text,
}
FormatName = Literal["auto", "preference", "feedback", "openai", "sharegpt", "prompt_completion", "alpaca", "text"]


def detect(row: dict[str, Any], source: str) -> str:
    """The name of the layout that a row has. Raises DataError naming the columns that are there."""
    for name, layout in FORMATS.items():
        if layout.matches(set(row)):
            return name
    known = sorted({column for layout in FORMATS.values() for column in layout.COLUMNS})
    hints = [hint for key in row if (hint := did_you_mean(str(key), known)).startswith("Did")]
    wanted = "; ".join(f"{name}: {', '.join(layout.REQUIRED)}" for name, layout in FORMATS.items())
    raise DataError(
        source,
        "has the columns of no known format",
        got=", ".join(map(str, row)) or "no columns",
        do=hints[0] if hints else f"Wanted one of ({wanted}), or map names with --dataset.columns",
    )
