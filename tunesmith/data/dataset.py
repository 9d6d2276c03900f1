"""The prepared Dataset on disk: token arrays that are memory-mapped, examples, ledger, facts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core import artifacts, files
from tunesmith.core.errors import DataError, UsageError
from tunesmith.core.examples import Example, Feedback, Preference, Text
from tunesmith.data.render import Rendered

if TYPE_CHECKING:
    import numpy as np
    import torch

FACTS, LEDGER = "dataset.json", "ledger.jsonl"
SPLITS = ("train", "held_out")


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One row: `ids` int32 and `trained` bool arrays of one length."""

    ids: np.ndarray
    trained: np.ndarray
    states: torch.Tensor | None = None
    """(tokens, D), what enters the first layer that is computed, where those before it were computed once for all."""


class Rows:
    """A memory-mapped split of a Dataset.

    A row has one sequence of tokens or two (preference: the chosen answer, the rejected one; feedback: the row, and its
    prompt with another row's answer). `lengths` are those of the longest sequence, `labels` the trained tokens of all.
    """

    def __init__(self, folder: Path, split: str) -> None:
        import numpy as np

        self._ids = np.load(folder / f"{split}.ids.npy", mmap_mode="r")
        self._trained = np.load(folder / f"{split}.trained.npy", mmap_mode="r")
        ends = np.load(folder / f"{split}.ends.npy")
        self._ends = ends.reshape(-1, 1) if ends.ndim == 1 else ends  # (rows, sequences), rows may be none
        self._starts = np.concatenate([[0], self._ends.reshape(-1)])[:-1].reshape(self._ends.shape)
        self.states: Callable[[slice], torch.Tensor] | None = None
        """Reads the states (T, D) of some tokens, where the first layers were computed once for all."""
        self.lengths: list[int] = (self._ends - self._starts).max(axis=1, initial=0).tolist()
        self.labels: list[int] = [
            sum(int(row.trained[1:].sum()) for row in self.sequences(number)) for number in range(len(self))
        ]
        verdicts = folder / f"{split}.good.npy"
        self.extras: dict[str, np.ndarray] = {"good": np.load(verdicts)} if verdicts.is_file() else {}
        """What a batch carries beside tokens, by name: one number a row, or one a sequence (rows, sequences)."""

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def each(self) -> int:
        """Sequences of a row."""
        return self._ends.shape[1]

    def __getitem__(self, number: int) -> TokenRow:
        """The first sequence of a row."""
        return self.sequences(number)[0]

    def sequences(self, number: int) -> tuple[TokenRow, ...]:
        """All sequences of a row."""
        spans = [self.span(number, place) for place in range(self.each)]
        states = [self.states and self.states(span) for span in spans]
        return tuple(TokenRow(self._ids[a], self._trained[a], b) for a, b in zip(spans, states, strict=True))

    @cached_property
    def shared(self) -> int:
        """Tokens with which all sequences begin and that no label stands behind."""
        spans = [self.span(number, place) for number in range(len(self)) for place in range(self.each)]
        return _shared([(self._ids[span], self._trained[span]) for span in spans])

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return len(self._ids)

    def span(self, number: int, place: int) -> slice:
        """Where a sequence of a row stands among the tokens of all."""
        return slice(self._starts[number][place], self._ends[number][place])

    def __iter__(self) -> Iterator[TokenRow]:
        """All sequences, row after row."""
        return (row for number in range(len(self)) for row in self.sequences(number))


class Few:
    """A handful of rows that can be collated and scored as a split is."""

    def __init__(self, rows: Sequence[tuple[TokenRow, ...]], extras: Mapping[str, np.ndarray] | None = None) -> None:
        self._rows, self.extras = rows, dict(extras or {})
        self.lengths = [max(len(sequence.ids) for sequence in row) for row in rows]

    @classmethod
    def of(cls, rows: Rows, count: int) -> Few:
        """At most `count` rows, evenly spread over a split."""
        return cls.these(rows, spread(len(rows), count))

    @classmethod
    def these(cls, rows: Rows, numbers: list[int]) -> Few:
        """The rows of these numbers."""
        return cls(
            [rows.sequences(number) for number in numbers],
            {name: values[numbers] for name, values in rows.extras.items()},
        )

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def shared(self) -> int:
        """Tokens with which all sequences begin and that no label stands behind."""
        return _shared([(sequence.ids, sequence.trained) for row in self._rows for sequence in row])

    def sequences(self, number: int) -> tuple[TokenRow, ...]:
        """All sequences of a row."""
        return self._rows[number]


def _shared(sequences: Sequence[tuple[np.ndarray, np.ndarray]]) -> int:
    """One token less than where sequences (ids, trained) begin to differ or a label stands; 0 of none."""
    import numpy as np

    shared = min((len(ids) for ids, _ in sequences), default=0)
    for ids, trained in sequences:
        differs = (ids[:shared] != sequences[0][0][:shared]) | trained[:shared]
        shared = int(np.argmax(differs)) if differs.any() else shared
    return max(0, shared - 1)


def spread(size: int, count: int) -> list[int]:
    """At most `count` numbers below `size`, evenly spread."""
    return sorted({place * size // count for place in range(count)}) if size > count else list(range(size))


def write_split(folder: Path, split: str, rows: Sequence[Sequence[Rendered]], examples: Sequence[Example]) -> None:
    """Write one split into a folder: token arrays, and the examples as rows that any verb can read."""
    import numpy as np

    flat = [sequence for row in rows for sequence in row]
    ids = np.concatenate([np.asarray(row.ids, dtype=np.int32) for row in flat] or [np.zeros(0, np.int32)])
    trained = np.concatenate([np.asarray(row.trained, dtype=bool) for row in flat] or [np.zeros(0, bool)])
    ends = np.cumsum([len(row.ids) for row in flat], dtype=np.int64)
    np.save(folder / f"{split}.ids.npy", ids)
    np.save(folder / f"{split}.trained.npy", trained)
    np.save(folder / f"{split}.ends.npy", ends.reshape(len(rows), -1) if rows else ends.reshape(0, 1))
    verdicts = [example.good for example in examples if isinstance(example, Feedback)]
    if verdicts:
        np.save(folder / f"{split}.good.npy", np.asarray(verdicts, dtype=bool))
    files.write_jsonl(folder / f"{split}.jsonl", (_as_row(example) for example in examples))


def _as_row(example: Example) -> dict[str, Any]:
    if isinstance(example, Text):
        return {"text": example.text, "source": example.source}
    if isinstance(example, Feedback):
        return {**_as_row(example.judged), "label": example.good}
    if isinstance(example, Preference):
        prompt = [m.as_dict() for m in example.chosen.messages if not m.trained]
        answers = [[m.as_dict() for m in side.messages if m.trained] for side in (example.chosen, example.rejected)]
        row = {"prompt": prompt, "chosen": answers[0], "rejected": answers[1], "source": example.source}
        return {**row, "tools": list(example.chosen.tools)} if example.chosen.tools else row
    messages = [{**m.as_dict(), **({} if m.trained else {"weight": 0})} for m in example.messages]
    row = {"messages": messages, "source": example.source}
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


def prepared_folder(config: Any) -> Path | None:
    """The prepared Dataset that `dataset` of a config (train's, plan's) names; None for rows.

    Raises UsageError where the config says how to prepare as well: what is prepared already stays as it is.
    """
    source = config.dataset
    folder = dataset_folder(source.path[0]) if len(source.path) == 1 else None
    if folder is None:
        return None
    evaluation = getattr(config, "evaluation", None)
    said = [f"dataset.{name}" for name in _changed(source) if name != "path"]
    said += ["cutoff"] if "cutoff" in _changed(config) else []
    said += ["evaluation.share"] if evaluation and "share" in _changed(evaluation) else []
    if said:
        raise UsageError(
            said[0], f"{source.path[0]} is prepared already", do="Leave it out, or prepare the rows again with it"
        )
    return folder


def _changed(config: Any) -> list[str]:
    """Options that have another value than their default."""
    known = type(config).model_fields
    return [name for name in known if getattr(config, name) != known[name].get_default(call_default_factory=True)]


def open_dataset(folder: Path) -> artifacts.Dataset:
    """The facts of a prepared Dataset. Raises DataError when the folder is damaged."""
    wrong = files.verify(folder)
    if wrong:
        raise DataError(str(folder), wrong, do="Prepare it again")
    facts = files.read_object(folder / FACTS)
    known = {field.name for field in fields(artifacts.Dataset)}
    return artifacts.Dataset(**{**{k: v for k, v in facts.items() if k in known}, "dataset": folder})
