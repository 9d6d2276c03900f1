"""The prepared Dataset on disk: token arrays that are memory-mapped, conversations, ledger, facts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core import artifacts, files
from tunesmith.core.errors import DataError
from tunesmith.core.examples import Conversation
from tunesmith.data.render import Rendered

if TYPE_CHECKING:
    import numpy as np

FACTS, LEDGER = "dataset.json", "ledger.jsonl"
SPLITS = ("train", "held_out")


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One row: `ids` int32 and `trained` bool arrays of one length."""

    ids: np.ndarray
    trained: np.ndarray


class Rows:
    """A memory-mapped split of a Dataset: `rows[3]`, `len(rows)`, `rows.lengths`, `rows.labels` (trained tokens a row)."""

    def __init__(self, folder: Path, split: str) -> None:
        import numpy as np

        self._ids = np.load(folder / f"{split}.ids.npy", mmap_mode="r")
        self._trained = np.load(folder / f"{split}.trained.npy", mmap_mode="r")
        self._ends = np.load(folder / f"{split}.ends.npy")
        starts = np.concatenate([[0], self._ends[:-1]])
        self._starts = starts
        self.lengths: list[int] = (self._ends - starts).tolist()
        self.labels: list[int] = [int(self._trained[a + 1 : b].sum()) for a, b in zip(starts, self._ends, strict=True)]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> TokenRow:
        span = slice(self._starts[number], self._ends[number])
        return TokenRow(self._ids[span], self._trained[span])

    def __iter__(self) -> Iterator[TokenRow]:
        return (self[number] for number in range(len(self)))


def write_split(folder: Path, split: str, rendered: Sequence[Rendered], examples: Sequence[Conversation]) -> None:
    """Write one split into a folder: three arrays, and the conversations as openai rows that any verb can read."""
    import numpy as np

    ids = np.concatenate([np.asarray(row.ids, dtype=np.int32) for row in rendered] or [np.zeros(0, np.int32)])
    trained = np.concatenate([np.asarray(row.trained, dtype=bool) for row in rendered] or [np.zeros(0, bool)])
    np.save(folder / f"{split}.ids.npy", ids)
    np.save(folder / f"{split}.trained.npy", trained)
    np.save(folder / f"{split}.ends.npy", np.cumsum([len(row.ids) for row in rendered], dtype=np.int64))
    files.write_jsonl(folder / f"{split}.jsonl", (_openai_row(example) for example in examples))


def _openai_row(example: Conversation) -> dict[str, Any]:
    messages = [{**m.as_dict(), **({} if m.trained else {"weight": 0})} for m in example.messages]
    row: dict[str, Any] = {"messages": messages, "source": example.source}
    if example.tools:
        row["tools"] = list(example.tools)
    if example.expect:
        row["expect"] = list(example.expect)
    return row


def is_dataset(path: str) -> bool:
    """Whether a path is a prepared Dataset folder (or a prepare run that holds one)."""
    return dataset_folder(path) is not None


def dataset_folder(path: str) -> Path | None:
    """The Dataset folder a path means: itself, or `dataset/` of a run folder; None for anything else."""
    for folder in (Path(path), Path(path) / "dataset"):
        if (folder / FACTS).is_file():
            return folder
    return None


def open_dataset(folder: Path) -> artifacts.Dataset:
    """The facts of a prepared Dataset. Raises DataError when the folder is damaged."""
    wrong = files.verify(folder)
    if wrong:
        raise DataError(str(folder), wrong, do="Prepare it again")
    facts = files.read_json(folder / FACTS)
    known = {field.name for field in fields(artifacts.Dataset)}
    return artifacts.Dataset(**{**{k: v for k, v in facts.items() if k in known}, "dataset": folder})
