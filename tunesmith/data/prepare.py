"""Rows into a Dataset: read, render, split, ledger. What `prepare` and `train` share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.core import files
from tunesmith.core.artifacts import Dataset
from tunesmith.core.errors import DataError
from tunesmith.core.examples import Conversation
from tunesmith.data.dataset import FACTS, LEDGER, write_split
from tunesmith.data.ledger import Entry, check, totals
from tunesmith.data.render import Rendered, render, template_fingerprint
from tunesmith.data.source import Reading, Source, read_examples

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Split:
    """How rows are divided: a `share` held out by `seed`, rows with one prompt on one side."""

    share: float
    seed: int


@dataclass(frozen=True, slots=True)
class _Row:
    example: Conversation
    rendered: Rendered
    entry: Entry


def write_dataset(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    target: Path,
    *,
    cutoff: int,
    split: Split,
    said: Callable[[str], object] = lambda text: None,
) -> Dataset:
    """Read, render and split the rows of `source` and write them as a Dataset into `target` (complete or absent).

    `said` gets a line on the format that was found. Raises DataError for unusable rows and for too much loss.
    """
    reading = read_examples(source.path, source.format, source.columns)
    said(f"format: {reading.format}, {len(reading.examples) + len(reading.problems)} rows")
    kept, entries = _render_all(reading, tokenizer, cutoff, drop_overlong=source.overlong == "drop")
    if source.held_out:
        apart = read_examples(source.held_out, source.format, source.columns)
        held, held_entries = _render_all(apart, tokenizer, cutoff, drop_overlong=source.overlong == "drop")
        train = kept
    else:
        train, held = _divide(kept, split)
        held_entries = []
    entries = (
        _mark(entries, train, "train") if source.held_out else _mark(_mark(entries, train, "train"), held, "held_out")
    )
    entries += _mark(held_entries, held, "held_out")
    check(entries, source.max_lost)
    if not train:
        raise DataError("dataset", "no row is left to train on", got=f"{len(held)} held out")
    return _write(target, train, held, entries, reading.format, template_fingerprint(tokenizer))


def _render_all(
    reading: Reading, tokenizer: PreTrainedTokenizerBase, cutoff: int, *, drop_overlong: bool
) -> tuple[list[_Row], list[Entry]]:
    rows: list[_Row] = []
    entries = [Entry(place, "dropped", reason) for place, reason in reading.problems]
    for example in reading.examples:
        try:
            rendered = render(example, tokenizer, cutoff)
        except DataError as error:
            entries.append(Entry(example.source, "dropped", str(error)))
            continue
        entry = _entry(example.source, rendered, cutoff, drop_overlong=drop_overlong)
        entries.append(entry)
        if entry.outcome != "dropped":
            rows.append(_Row(example, rendered, entry))
    return rows, entries


def _entry(place: str, rendered: Rendered, cutoff: int, *, drop_overlong: bool) -> Entry:
    trained = sum(rendered.trained[1:])
    if not rendered.lost_tokens:
        outcome, reason = "kept", ""
    elif not trained:
        outcome, reason = "dropped", f"no trained token within the cutoff of {cutoff}"
    elif drop_overlong:
        outcome, reason = "dropped", f"longer than the cutoff of {cutoff}"
    else:
        outcome, reason = "truncated", f"longer than the cutoff of {cutoff}"
    return Entry(
        place, outcome, reason, "", len(rendered.ids), trained, rendered.lost_tokens,
        "end" if rendered.lost_tokens else "", rendered.lost_trained, rendered.end_trained,
    )  # fmt: skip


def _prompt_key(row: _Row, seed: int) -> str:
    """A stable place in the split: the same prompt has the same place, wherever it stands in the file."""
    messages = row.example.messages
    prompt = [(m.role, m.content) for m in (messages[:-1] if len(messages) > 1 else messages)]
    return hashlib.sha256(repr((seed, prompt)).encode()).hexdigest()


def _divide(rows: Sequence[_Row], split: Split) -> tuple[list[_Row], list[_Row]]:
    """Hold out about `share` of the rows; rows that ask the same are never on both sides."""
    wanted = round(len(rows) * split.share)
    if split.share and len(rows) > 1:
        wanted = max(wanted, 1)
    groups: dict[str, list[_Row]] = {}
    for row in rows:
        groups.setdefault(_prompt_key(row, split.seed), []).append(row)
    held: list[_Row] = []
    for key in sorted(groups):
        if len(held) >= wanted or len(held) + len(groups[key]) >= len(rows):
            break
        held += groups[key]
    places = {id(row) for row in held}
    return [row for row in rows if id(row) not in places], held


def _mark(entries: list[Entry], rows: Sequence[_Row], split: str) -> list[Entry]:
    inside = {id(row.entry) for row in rows}
    return [replace(entry, split=split) if id(entry) in inside else entry for entry in entries]


def _write(
    target: Path, train: list[_Row], held: list[_Row], entries: list[Entry], layout: str, template: str
) -> Dataset:
    facts = totals(entries)
    data_sha256 = files.fingerprint([[row.rendered.ids, row.rendered.trained] for row in (*train, *held)])
    made = Dataset(
        dataset=target, format=layout, train_rows=len(train), held_out_rows=len(held),
        template_sha256=template, data_sha256=data_sha256, **facts,
    )  # fmt: skip
    with files.new_folder(target) as folder:
        for split, rows in (("train", train), ("held_out", held)):
            write_split(folder, split, [row.rendered for row in rows], [row.example for row in rows])
        files.write_jsonl(folder / LEDGER, (entry.as_dict() for entry in entries))
        files.write_json(folder / FACTS, {**asdict(made), "dataset": str(target)})
    return made
