"""Rows of LLaMA-Factory as ours: its own files where that is the same, converted rows where it is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from theirs import DATA, TRAIN, migrate
from tunesmith.core.examples import Conversation
from tunesmith.core.files import write_jsonl
from tunesmith.data.source import read_examples


def rows_of(migrated, name="rows.jsonl"):
    return list(migrated.rows[name].converted())


def said(rows):
    return [[(m["role"], m["content"]) for m in row["messages"]] for row in rows]


@pytest.mark.parametrize(
    ("dataset", "stage", "expected"),
    [
        ("lamps", "sft", {"format": "alpaca"}),
        ("tools", "sft", {"format": "sharegpt"}),
        ("questions", "sft", {"format": "alpaca", "columns": {"instruction": "question", "input": "hint", "output": "answer", "history": "before"}}),
        ("pairs", "dpo", {"format": "preference"}),
        ("verdicts", "kto", {"format": "feedback"}),
    ],
)  # fmt: skip
def test_their_own_files_where_our_reader_sees_the_same(dataset, stage, expected):
    ours = migrate(**{**TRAIN, "dataset": dataset, "stage": stage}).documents["train"]["dataset"]
    file = {"questions": "questions.json"}.get(dataset, f"{dataset}.json")
    assert ours == {"path": [f"{DATA}/{file}"], **expected}


def test_two_layouts_become_one_file_of_rows(tmp_path):
    migrated = migrate(**{**TRAIN, "dataset": "lamps,talks"})
    assert migrated.documents["train"]["dataset"] == {"path": ["out/rows.jsonl"], "format": "openai"}
    rows = rows_of(migrated)
    assert len(rows) == 18
    assert said(rows)[0] == [("user", "What colour has lamp 0?"), ("assistant", "Lamp 0 is red.")]
    assert said(rows)[12] == [
        ("user", "Is lamp 0 on?"),
        ("assistant", "Yes."),
        ("user", "Sure?"),
        ("assistant", "Quite sure."),
    ]
    assert rows[12]["source"] == "talks.json:1"
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert len(read_examples([str(tmp_path / "rows.jsonl")], "openai").examples) == 18


def test_columns_that_are_not_named_are_not_read():
    migrated = migrate(**{**TRAIN, "dataset": "questions_short"})
    assert said(rows_of(migrated) if migrated.rows else [])[:1] in (
        [],
        [[("user", "Where is lamp 0?"), ("assistant", "In room 0.")]],
    )
    assert "input" not in migrated.documents["train"]["dataset"].get("columns", {})
    assert "query, system, history" in next(v.text for v in migrated.verdicts if v.key == "questions_short.columns")


def test_max_samples_counts_for_every_dataset():
    migrated = migrate(**{**TRAIN, "dataset": "lamps,talks", "max_samples": 4})
    assert [row["source"] for row in rows_of(migrated)] == [
        f"{name}.json:{n}" for name in ("lamps", "talks") for n in (1, 2, 3, 4)
    ]
    assert not migrate(**TRAIN, max_samples=1000).rows


def test_num_samples_draws_and_repeats():
    rows = rows_of(migrate(**{**TRAIN, "dataset": "drawn"}))
    assert len(rows) == 20
    assert len({row["source"] for row in rows}) == 12
    assert rows == rows_of(migrate(**{**TRAIN, "dataset": "drawn"}))


def test_only_the_last_answer_and_a_system_message(tmp_path):
    migrated = migrate(
        **{**TRAIN, "dataset": "questions", "mask_history": True, "default_system": "You look after lamps."}
    )
    write_jsonl(tmp_path / "rows.jsonl", rows_of(migrated))
    example = read_examples([str(tmp_path / "rows.jsonl")], "openai").examples[0]
    assert isinstance(example, Conversation)
    assert [(m.role, m.trained) for m in example.messages if m.role != "user"] == [
        ("system", True),
        ("assistant", False),
        ("assistant", True),
    ]


def test_every_line_of_text_is_a_document():
    migrated = migrate(**{**TRAIN, "stage": "pt", "dataset": "leaflet"})
    assert migrated.documents["train"]["dataset"]["format"] == "text"
    assert rows_of(migrated)[1]["text"] == "Lamp 1 hangs in room 1 and burns for 4 hours a day."


def test_json_lines_in_a_json_file():
    assert len(rows_of(migrate(**{**TRAIN, "dataset": "lines"}))) == 5


def test_format_typed_for_formatting_is_read_as_meant():
    ours = migrate(**{**TRAIN, "dataset": "talks_mistyped"}).documents["train"]["dataset"]
    assert ours["format"] == "sharegpt"


def test_train_and_held_out_rows_have_one_format():
    migrated = migrate(**{**TRAIN, "dataset": "tools", "eval_dataset": "lamps"})
    ours = migrated.documents["train"]["dataset"]
    assert ours == {"path": ["out/rows.jsonl"], "format": "openai", "held_out": ["out/held_out_rows.jsonl"]}
    assert migrate(**{**TRAIN, "eval_dataset": "who"}).documents["train"]["dataset"]["held_out"] == [f"{DATA}/who.json"]
    assert rows_of(migrated)[0]["messages"][1]["tool_calls"][0]["function"]["name"] == "switch"


def test_broken_rows_are_left_to_the_ledger(tmp_path):
    rows = [
        {"instruction": "a", "output": "b"},
        {"instruction": "a", "output": None},
        {"instruction": "a", "output": "b", "system": "c"},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    info = {"broken": {"file_name": str(tmp_path / "rows.json")}}
    migrated = migrate(**{**TRAIN, "dataset": "broken", "dataset_dir": info})
    write_jsonl(tmp_path / "rows.jsonl", rows_of(migrated))
    reading = read_examples([str(tmp_path / "rows.jsonl")], "openai")
    assert [reason for _, reason in reading.problems] == ["message content must be text. Got None."]
    assert len(reading.examples[1].messages) == 2  # system is not read, as LLaMA-Factory does not


def test_the_real_sets(shared_data: Path):
    migrated = migrate(**{**TRAIN, "dataset_dir": str(shared_data), "dataset": "identity,alpaca_en_demo"})
    assert migrated.documents["train"]["dataset"] == {
        "path": [str(shared_data / "identity.json"), str(shared_data / "alpaca_en_demo.json")], "format": "alpaca",
    }  # fmt: skip
    assert "85 of 91 rows" in next(v.text for v in migrated.verdicts if v.key == "identity.rows")
    for dataset, stage, layout in (
        ("glaive_toolcall_en_demo", "sft", "sharegpt"),
        ("dpo_en_demo", "dpo", "preference"),
        ("kto_en_demo", "kto", "feedback"),
    ):
        found = migrate(**{**TRAIN, "dataset_dir": str(shared_data), "dataset": dataset, "stage": stage})
        assert found.documents["train"]["dataset"] == {"path": [str(shared_data / f"{dataset}.json")], "format": layout}
