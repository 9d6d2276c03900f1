"""Rows into a Dataset: read, render, split, ledger. What `prepare` and `train` share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core import files
from tunesmith.core.artifacts import Dataset
from tunesmith.core.errors import DataError
from tunesmith.core.examples import Conversation, Example, Feedback, Kind, Preference, Text, dialogue_of
from tunesmith.data.dataset import FACTS, LEDGER, is_dataset, write_split
from tunesmith.data.ledger import Entry, check, totals
from tunesmith.data.render import Rendered, render, render_text_row, template_fingerprint
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
    example: Example
    rendered: tuple[Rendered, ...]
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
    for path in (*source.path, *source.held_out):
        if is_dataset(path):
            raise DataError(path, "is prepared already", do="train takes it as it is, alone; rows come from files")
    reading = read_examples(source.path, source.format, source.columns)
    said(f"format: {reading.format}, {len(reading.examples) + len(reading.problems)} rows")
    kept, entries = _render_all(reading, tokenizer, cutoff, drop_overlong=source.overlong == "drop")
    if source.held_out:
        apart = read_examples(source.held_out, source.format, source.columns)
        if apart.kind != reading.kind:
            raise DataError(
                source.held_out[0], f"held-out rows must be {reading.kind} rows like the others",
                got=f"{apart.kind} rows ({apart.format})",
            )  # fmt: skip
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
    sequences = {
        name: sequences_of(reading.kind, [row.rendered for row in rows], cutoff)
        for name, rows in (("train", train), ("held_out", held))
    }
    facts = {"format": reading.format, "kind": reading.kind, "template_sha256": template_fingerprint(tokenizer)}
    return _write(target, {"train": train, "held_out": held}, sequences, entries, facts)


def sequences_of(kind: Kind, rows: Sequence[tuple[Rendered, ...]], cutoff: int) -> list[tuple[Rendered, ...]]:
    """What the rows of a split become: documents are laid end to end, verdicts get a mismatched answer."""
    if kind == "text":
        return _blocks([rendered for (rendered,) in rows], cutoff)
    if kind == "feedback" and rows:
        if len(rows) < 2:
            raise DataError(
                "dataset", "KTO needs at least 2 rows on either side of the split", got="1",
                do="Add rows, or hold none out (share 0)",
            )  # fmt: skip
        return [(row[0], _mismatched(row[0], rows[number - 1][0], cutoff)) for number, row in enumerate(rows)]
    return list(rows)


def _blocks(documents: Sequence[Rendered], cutoff: int) -> list[tuple[Rendered, ...]]:
    """All documents as one stream of tokens, cut into rows of `cutoff` tokens; no token is lost.

    A last token alone would have none before it to predict it from: it gets one of the row before.
    """
    stream = [token for document in documents for token in document.ids]
    ends = list(range(cutoff, len(stream), cutoff))
    if ends and ends[-1] == len(stream) - 1:
        ends[-1] -= 1
    parts = [stream[start:end] for start, end in zip([0, *ends], [*ends, len(stream)], strict=True)]
    return [(Rendered(part, [True] * len(part)),) for part in parts if len(part) > 1]


def _mismatched(row: Rendered, other: Rendered, cutoff: int) -> Rendered:
    """The prompt of a row with another row's answer: KTO's reference point is estimated from such pairs.

    Ethayarajh et al. 2024, arXiv 2402.01306, section 4.2.
    """
    own, theirs = row.trained.index(True), other.trained.index(True)
    ids, trained = row.ids[:own] + other.ids[theirs:], row.trained[:own] + other.trained[theirs:]
    return Rendered(ids[:cutoff], trained[:cutoff])


def _render_all(
    reading: Reading, tokenizer: PreTrainedTokenizerBase, cutoff: int, *, drop_overlong: bool
) -> tuple[list[_Row], list[Entry]]:
    rows: list[_Row] = []
    entries = [Entry(place, "dropped", reason) for place, reason in reading.problems]
    for example in reading.examples:
        try:
            rendered = _render(example, tokenizer, cutoff)
        except DataError as error:
            entries.append(Entry(example.source, "dropped", str(error)))
            continue
        entry = _entry(example.source, rendered, cutoff, drop_overlong=drop_overlong)
        entries.append(entry)
        if entry.outcome != "dropped":
            rows.append(_Row(example, rendered, entry))
    return rows, entries


def _render(example: Example, tokenizer: PreTrainedTokenizerBase, cutoff: int) -> tuple[Rendered, ...]:
    if isinstance(example, Text):
        return (render_text_row(example.text, tokenizer),)
    if isinstance(example, Preference):
        _refuse_empty(example.chosen)
        return tuple(render(side, tokenizer, cutoff) for side in (example.chosen, example.rejected))
    dialogue = example.judged if isinstance(example, Feedback) else example
    if not isinstance(example, Feedback) or example.good:
        _refuse_empty(dialogue)
    return (render(dialogue, tokenizer, cutoff),)


def _refuse_empty(dialogue: Conversation) -> None:
    """An empty answer would teach to say nothing; as a bad example it may be what is meant."""
    for message in dialogue.messages:
        if message.role == "assistant" and message.trained and not message.tool_calls and not message.content.strip():
            raise DataError("", "the answer is empty", do="Fill it in or remove the row")


def _entry(place: str, sequences: tuple[Rendered, ...], cutoff: int, *, drop_overlong: bool) -> Entry:
    trained = [sum(rendered.trained[1:]) for rendered in sequences]
    lost = sum(rendered.lost_tokens for rendered in sequences)
    if not lost:
        outcome, reason = "kept", ""
    elif not all(trained):
        outcome, reason = "dropped", f"no trained token within the cutoff of {cutoff}"
    elif drop_overlong:
        outcome, reason = "dropped", f"longer than the cutoff of {cutoff}"
    else:
        outcome, reason = "truncated", f"longer than the cutoff of {cutoff}"
    lengths = [len(rendered.ids) for rendered in sequences]
    return Entry(
        place, outcome, reason, tokens=sum(lengths), longest=max(lengths), trained_tokens=sum(trained),
        lost_tokens=lost, lost_from="end" if lost else "",
        lost_trained_tokens=sum(rendered.lost_trained for rendered in sequences),
        end_trained=all(rendered.end_trained for rendered in sequences),
    )  # fmt: skip


def _prompt_key(row: _Row, seed: int) -> str:
    """A stable place in the split: the same prompt has the same place, wherever it stands in the file."""
    dialogue = dialogue_of(row.example)
    messages = dialogue.messages if dialogue else ()
    prompt: Any = [(m.role, m.content) for m in (messages[:-1] if len(messages) > 1 else messages)]
    if isinstance(row.example, Text):
        prompt = row.example.text
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
    target: Path, rows: dict[str, list[_Row]], sequences: dict[str, list[tuple[Rendered, ...]]],
    entries: list[Entry], facts: dict[str, Any],
) -> Dataset:  # fmt: skip
    tokens = [[[one.ids, one.trained] for one in row] for split in sequences.values() for row in split]
    verdicts = [row.example.good for split in rows.values() for row in split if isinstance(row.example, Feedback)]
    counts = totals(entries)
    made = Dataset(
        dataset=target, train_rows=len(sequences["train"]), held_out_rows=len(sequences["held_out"]),
        data_sha256=files.fingerprint([tokens, verdicts]), **facts, **counts,
    )  # fmt: skip
    with files.new_folder(target) as folder:
        for split, written in sequences.items():
            write_split(folder, split, written, [row.example for row in rows[split]])
        files.write_jsonl(folder / LEDGER, (entry.as_dict() for entry in entries))
        files.write_json(folder / FACTS, {**asdict(made), "dataset": str(target)})
    return made
