"""Files of every kind and layout into conversations, and what is said of those that cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.core.errors import DataError, UsageError
from tunesmith.core.examples import Message
from tunesmith.data.source import Source, read_examples

ALPACA = {"instruction": "Add", "input": "2+2", "output": "4", "system": "Be exact.", "history": [["Hi", "Hello"]]}
SHAREGPT = {
    "system": "Be exact.",
    "conversations": [{"from": "human", "value": "Add 2+2"}, {"from": "gpt", "value": "4"}],
}
OPENAI = {"messages": [{"role": "user", "content": "Add 2+2"}, {"role": "assistant", "content": "4"}]}
TRL = {"prompt": [{"role": "user", "content": "Add 2+2"}], "completion": [{"role": "assistant", "content": "4"}]}


def write(folder: Path, name: str, *rows: object) -> str:
    path = folder / name
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("name", "row", "roles"),
    [
        ("alpaca", ALPACA, "system user assistant user assistant"),
        ("sharegpt", SHAREGPT, "system user assistant"),
        ("openai", OPENAI, "user assistant"),
        ("prompt_completion", TRL, "user assistant"),
        ("prompt_completion", {"prompt": "Add 2+2", "completion": "4"}, "user assistant"),
    ],
)
def test_each_layout_is_detected_and_read(tmp_path, name, row, roles):
    reading = read_examples([write(tmp_path, "rows.jsonl", row)])
    assert reading.format == name
    (example,) = reading.examples
    assert [message.role for message in example.messages] == roles.split()
    assert example.messages[-1].content == "4"
    assert example.source == "rows.jsonl:1"


def test_alpaca_puts_the_input_on_a_line_of_its_own(tmp_path):
    (example,) = read_examples([write(tmp_path, "rows.jsonl", ALPACA)]).examples
    assert example.messages[-2] == Message("user", "Add\n2+2")


def test_sharegpt_function_calls_become_tool_calls(shared_data):
    reading = read_examples([str(shared_data / "glaive_toolcall_en_demo.json")])
    calls = [m for e in reading.examples for m in e.messages if m.tool_calls]
    assert len(reading.examples) == 300
    assert not reading.problems
    assert all(call.tool_calls[0]["function"]["name"] for call in calls)


@pytest.mark.parametrize("name", ["rows.json", "rows.csv", "rows.tsv", "rows.parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    import pyarrow as arrow
    from pyarrow import parquet

    rows = [{"instruction": 'Say "a, b"\nplease', "output": "a, b 你好"}, {"instruction": "x", "output": "y"}]
    path = tmp_path / name
    if path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        parquet.write_table(arrow.Table.from_pylist(rows), path)
    else:
        import csv

        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, ["instruction", "output"], delimiter="\t" if path.suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows(rows)
    examples = read_examples([str(path)]).examples
    assert [m.content for e in examples for m in e.messages] == ['Say "a, b"\nplease', "a, b 你好", "x", "y"]


def test_columns_can_be_mapped(tmp_path):
    path = write(tmp_path, "rows.jsonl", {"frage": "Add 2+2", "antwort": "4"})
    reading = read_examples([path], "alpaca", {"instruction": "frage", "output": "antwort"})
    assert [m.content for m in reading.examples[0].messages] == ["Add 2+2", "4"]
    with pytest.raises(DataError, match="no column 'fragen'. Did you mean 'frage'"):
        read_examples([path], "alpaca", {"instruction": "fragen", "output": "antwort"})
    with pytest.raises(UsageError, match="alpaca rows have no 'outputs'. Did you mean 'output'"):
        read_examples([path], "alpaca", {"instruction": "frage", "outputs": "antwort"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "rows.jsonl: is empty"),
        ("\n\n", "rows.jsonl: holds no rows"),
        ('{"instruction": "a", "output": "b"}\n{"instruction": \n', "rows.jsonl:2: not valid JSON"),
        ("[1]\n", "rows.jsonl:1: a row must be an object"),
        ('{"instructions": "a", "outputs": "b"}\n', "Did you mean 'instruction'"),
        ('{"foo": 1}\n', "rows.jsonl:1: has the columns of no known format. Got foo"),
    ],
)
def test_files_that_cannot_be_used_say_why(tmp_path, text, said):
    path = tmp_path / "rows.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=said.replace("(", r"\(")):
        read_examples([str(path)])


def test_other_broken_files(tmp_path):
    for name, data, said in [
        ("a.json", b'{"a": 1}', "must be a list"), ("b.csv", b"a,b\n1\n", "more or fewer cells"),
        ("c.jsonl", b"\xff\xfe", "not UTF-8"), ("d.parquet", b"PAR1 no", "not a valid parquet"),
        ("e.docx", b"x", "of no kind that can be read"),
    ]:  # fmt: skip
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=said):
            read_examples([str(tmp_path / name)])
    with pytest.raises(DataError, match="no such file"):
        read_examples([str(tmp_path / "gone.json")])


def test_rows_that_cannot_be_read_are_named_not_lost(tmp_path):
    path = write(tmp_path, "rows.jsonl", ALPACA, {"instruction": "x", "output": 7}, {"instruction": "x"}, ALPACA)
    reading = read_examples([path])
    assert len(reading.examples) == 2
    assert reading.problems == [("rows.jsonl:2", "output must be text. Got 7."), ("rows.jsonl:3", "has no output.")]


def test_expected_strings_come_along(tmp_path):
    (example,) = read_examples([write(tmp_path, "rows.jsonl", {**ALPACA, "expect": ["4|four"]})]).examples
    assert example.expect == ("4|four",)


def test_short_forms_of_a_source():
    assert Source.model_validate("a.json") == Source(path=("a.json",))
    assert Source.model_validate(["a.json", "b.json"]).path == ("a.json", "b.json")
