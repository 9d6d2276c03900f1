"""Prepared rows are kept by all that decides what becomes of them, and are never taken with a byte that is not theirs."""

from __future__ import annotations

import os
import time

import pytest

from tiny import byte_tokenizer
from tunesmith.core.files import verify
from tunesmith.data import kept
from tunesmith.data.dataset import open_dataset
from tunesmith.data.kept import prepare_rows
from tunesmith.data.prepare import Split
from tunesmith.data.source import Source

SPLIT = Split(0.25, 1)


@pytest.fixture
def rows(tmp_path, rows_file):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(rows_file.read_bytes())
    return path


@pytest.fixture
def prepare(tmp_path, rows, tokenizer, monkeypatch):
    """`prepare(**changes)` -> (Dataset, whether it came from the cache)."""
    made, numbers = [], iter(range(99))
    write = kept.write_dataset
    monkeypatch.setattr(kept, "write_dataset", lambda *all, **more: made.append(1) or write(*all, **more))

    def call(tokenizer=tokenizer, cutoff=64, split=SPLIT, said=lambda text: None, **source):
        made.clear()
        wish, target = (
            Source.model_validate({"path": [str(rows)], **source}),
            tmp_path / f"run{next(numbers)}" / "dataset",
        )
        dataset = prepare_rows(wish, tokenizer, target, cutoff=cutoff, split=split, said=said)
        assert open_dataset(target) == dataset
        return dataset, not made

    return call


def entry_of(tmp_path):
    (entry,) = (tmp_path / "cache" / "rows").iterdir()
    return entry


def bytes_of(dataset):
    return {path.name: path.read_bytes() for path in dataset.dataset.iterdir() if path.suffix in {".npy", ".jsonl"}}


def test_the_same_rows_are_prepared_once_and_lie_whole_in_every_run(prepare, tmp_path):
    lines = []
    first, _ = prepare()
    second, is_kept = prepare(said=lines.append)
    assert is_kept
    assert lines == [f"cache     40 rows (alpaca), prepared before, from {entry_of(tmp_path)}"]
    assert bytes_of(second) == bytes_of(first)
    assert (second.data_sha256, second.tokens, second.train_rows) == (first.data_sha256, first.tokens, first.train_rows)
    assert verify(second.dataset) is None
    assert str(second.dataset) in (second.dataset / "dataset.json").read_text(encoding="utf-8")
    second.dataset.joinpath("train.jsonl").write_text(
        "mine\n", encoding="utf-8"
    )  # the other runs' rows stay as they are
    assert verify(first.dataset) is None
    assert prepare()[1]


@pytest.mark.parametrize(
    "change",
    [{"cutoff": 63}, {"split": Split(0.25, 2)}, {"split": Split(0.5, 1)}, {"overlong": "drop"}, {"max_lost": 0.5},
     {"format": "alpaca"}, {"columns": {"instruction": "instruction"}}],
)  # fmt: skip
def test_another_option_prepares_anew(prepare, change):
    prepare()
    assert not prepare(**change)[1]
    assert prepare(**change)[1]
    assert prepare()[1]


def test_another_byte_or_name_or_held_out_file_prepares_anew(prepare, rows):
    prepare()
    first = rows.read_bytes()
    rows.write_bytes(first.replace(b"lamp 7?", b"lamp 8?", 1))
    assert not prepare()[1]
    rows.write_bytes(first)
    assert prepare()[1]
    other = rows.with_name("other.jsonl")
    other.write_bytes(first)
    assert not prepare(path=[str(other)])[1]  # the ledger names its rows otherwise
    assert not prepare(held_out=[str(other)])[1]


def test_another_template_or_token_prepares_anew(prepare):
    prepare(cutoff=80)
    other = byte_tokenizer()
    other.chat_template = other.chat_template.replace("\n", "\n\n")
    assert not prepare(other, cutoff=80)[1]
    more = byte_tokenizer()
    more.add_tokens(["lamp"])
    assert not prepare(more, cutoff=80)[1]
    assert prepare(cutoff=80)[1]


def test_a_template_that_asks_for_the_day_is_rendered_anew_on_another_day(prepare, monkeypatch):
    class Tomorrow:
        @staticmethod
        def today():
            return "tomorrow"

    dated = byte_tokenizer()
    dated.chat_template = "{% if false %}{{ strftime_now('%d') }}{% endif %}" + dated.chat_template
    prepare(dated)
    assert prepare(dated)[1]
    monkeypatch.setattr(kept, "date", Tomorrow)
    assert not prepare(dated)[1]


def test_our_own_code_is_part_of_the_name(prepare, monkeypatch):
    prepare()
    monkeypatch.setattr(kept.files, "sources_sha256", lambda package: "changed")
    assert not prepare()[1]


def flip(path):
    told = bytearray(path.read_bytes())
    told[-1] ^= 1
    path.write_bytes(bytes(told))


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("name", ["train.ids.npy", "ledger.jsonl", "manifest.json", "dataset.json"])
@pytest.mark.parametrize("damage", [flip, cut, os.unlink])
def test_a_damaged_entry_is_never_taken_and_made_anew(prepare, tmp_path, name, damage):
    lines = []
    first, _ = prepare()
    damage(entry_of(tmp_path) / name)
    again, is_kept = prepare(said=lines.append)
    if name == "manifest.json" and damage is not os.unlink and verify(again.dataset) is None and is_kept:
        return  # the byte was the line break at its end, which says nothing
    assert not is_kept
    assert "the rows are prepared anew" in lines[0]
    assert bytes_of(again) == bytes_of(first)
    assert prepare()[1]


def test_entries_that_no_run_reads_go(prepare, tmp_path):
    prepare()
    old = entry_of(tmp_path)
    month_ago = time.time() - 31 * 86400
    os.utime(old / "manifest.json", (month_ago, month_ago))
    prepare(cutoff=63)
    assert not old.exists()
    assert len(list((tmp_path / "cache" / "rows").iterdir())) == 1


def test_a_full_disk_costs_only_the_cache(prepare, monkeypatch):
    lines = []
    monkeypatch.setattr(kept.kept, "SPARE_BYTES", 1 << 60)
    assert not prepare(said=lines.append)[1]
    assert "not kept" in lines[-1]
    assert not prepare()[1]
