"""Rows into a Dataset: every row is accounted for, the split does not leak, nothing is written half."""

from __future__ import annotations

import json

import pytest

from tunesmith.core import files
from tunesmith.core.errors import DataError
from tunesmith.data.dataset import Rows, open_dataset
from tunesmith.data.prepare import Split, write_dataset
from tunesmith.data.render import token_ids
from tunesmith.data.source import Source, read_examples


def write_rows(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def row(question, answer):
    return {"instruction": question, "output": answer}


def prepare(tokenizer, target, path, *, cutoff=200, share=0.25, **source):
    return write_dataset(Source(path=(path,), **source), tokenizer, target, cutoff=cutoff, split=Split(share, 1))


def ledger(made):
    return [entry for _, entry in files.read_jsonl(made.dataset / "ledger.jsonl")]


def test_every_row_is_in_the_ledger_once(tokenizer, tmp_path):
    rows = [row(f"question {n}", f"answer {n}") for n in range(8)]
    rows += [row("long", "x" * 300), row("q" * 300, "never seen"), row("bad", 5), row("<|im_end|>", "no")]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    made = prepare(tokenizer, tmp_path / "data", path, max_lost=1)
    assert (made.rows, made.kept, made.truncated, made.dropped) == (12, 8, 1, 3)
    entries = {entry["source"]: entry for entry in ledger(made)}
    assert len(entries) == 12
    assert entries["rows.jsonl:9"]["outcome"] == "truncated"
    assert entries["rows.jsonl:9"]["lost_from"] == "end"
    assert not entries["rows.jsonl:9"]["end_trained"]
    whole = len(token_ids(tokenizer, "<|im_start|>user\nlong<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n")) + 300
    assert entries["rows.jsonl:9"]["lost_tokens"] == whole - 200
    assert entries["rows.jsonl:10"]["reason"] == "no trained token within the cutoff of 200"
    assert "output must be text" in entries["rows.jsonl:11"]["reason"]
    assert "control token" in entries["rows.jsonl:12"]["reason"]
    assert made.end_token_lost == 1
    assert sum(entry["split"] != "" for entry in entries.values()) == made.train_rows + made.held_out_rows == 9


def test_arrays_hold_what_was_rendered(tokenizer, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [row("one", "eins"), row("two", "zwei"), row("three", "drei")])
    made = prepare(tokenizer, tmp_path / "data", path, share=0.34)
    train, held = Rows(made.dataset, "train"), Rows(made.dataset, "held_out")
    assert (len(train), len(held)) == (2, 1)
    texts = sorted(tokenizer.decode(r.ids[r.trained].tolist()) for split in (train, held) for r in split)
    assert texts == ["drei<|im_end|>", "eins<|im_end|>", "zwei<|im_end|>"]
    assert sum(train.labels) + sum(held.labels) == made.trained_tokens


def test_nothing_need_be_held_out(tokenizer, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [row("one", "eins"), row("two", "zwei")])
    made = prepare(tokenizer, tmp_path / "data", path, share=0.0)
    assert (len(Rows(made.dataset, "train")), len(Rows(made.dataset, "held_out"))) == (2, 0)


def test_the_same_question_never_stands_on_both_sides(tokenizer, tmp_path):
    rows = [row(f"question {n % 10}", f"answer {n}") for n in range(40)]
    made = prepare(tokenizer, tmp_path / "data", write_rows(tmp_path / "rows.jsonl", rows), share=0.3)
    sides = {
        split: {e.messages[0].content for e in read_examples([str(made.dataset / f"{split}.jsonl")]).examples}
        for split in ("train", "held_out")
    }
    assert made.held_out_rows == 12
    assert not sides["train"] & sides["held_out"]


def test_the_split_is_decided_by_the_seed(tokenizer, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [row(f"question {n}", "a") for n in range(40)])
    same = [prepare(tokenizer, tmp_path / name, path).data_sha256 for name in ("a", "b")]
    other = write_dataset(Source(path=(path,)), tokenizer, tmp_path / "c", cutoff=200, split=Split(0.25, 2)).data_sha256
    assert same[0] == same[1] != other


def test_held_out_files_are_kept_apart(tokenizer, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [row("a", "b"), row("c", "d")])
    apart = write_rows(tmp_path / "held.jsonl", [row("e", "f")])
    made = prepare(tokenizer, tmp_path / "data", path, held_out=(apart,))
    assert (made.train_rows, made.held_out_rows) == (2, 1)


@pytest.mark.parametrize(
    ("rows", "cutoff", "said"),
    [
        ([{"messages": [{"role": "user", "content": "Hi"}]}], 200, "rows.jsonl:1: no assistant turn"),
        ([row("q" * 90, "x" * 90)] * 3, 40, "no trained token within the cutoff of 40 and so for all 3 rows"),
        ([row("q", "x" * 90)] * 3, 60, "cutoff: every row is longer than the cutoff"),
        ([row("q", "a")] * 8 + [row("q", 1), row("q", 2)], 200, r"2 of 10 rows \(20.0%\) would be lost"),
    ],
    ids=["no-assistant", "all-dropped", "all-truncated", "max-lost"],
)
def test_unusable_rows_stop_with_one_line_and_leave_nothing(tokenizer, tmp_path, rows, cutoff, said):
    path = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=said):
        prepare(tokenizer, tmp_path / "data", path, cutoff=cutoff, max_lost=0.1)
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_damaged_dataset_is_refused(tokenizer, tmp_path):
    made = prepare(tokenizer, tmp_path / "data", write_rows(tmp_path / "rows.jsonl", [row("a", "b"), row("c", "d")]))
    assert open_dataset(made.dataset).train_rows == made.train_rows
    data = (made.dataset / "train.ids.npy").read_bytes()
    (made.dataset / "train.ids.npy").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DataError, match="damaged train.ids.npy"):
        open_dataset(made.dataset)


def test_real_files_are_kept_whole(tokenizer, tmp_path, shared_data):
    made = prepare(tokenizer, tmp_path / "data", str(shared_data / "alpaca_zh_demo.json"), cutoff=100_000)
    assert (made.rows, made.kept) == (1000, 1000)
