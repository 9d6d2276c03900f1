"""Rows that are pairs, verdicts and documents: every layout they come in, what becomes of them, what is refused."""

from __future__ import annotations

import json

import pytest

from tunesmith.core.errors import DataError
from tunesmith.core.examples import Feedback, Message, Preference, Text
from tunesmith.data.batch import collate
from tunesmith.data.dataset import Rows
from tunesmith.data.prepare import Split, write_dataset
from tunesmith.data.source import Source, read_conversations, read_examples

USER, GOOD, BAD = (
    {"role": "user", "content": "Is the lamp on?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "assistant", "content": "Who knows."},
)
PREFERENCES = {
    "trl, text": {"prompt": USER["content"], "chosen": "Yes.", "rejected": "Who knows."},
    "trl, messages": {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    "trl, implicit prompt": {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "alpaca": {"instruction": "Is the lamp", "input": "on?", "chosen": "Yes.", "rejected": "Who knows."},
    "sharegpt": {
        "conversations": [{"from": "human", "value": USER["content"]}],
        "chosen": {"from": "gpt", "value": "Yes."},
        "rejected": {"from": "gpt", "value": "Who knows."},
    },
}
VERDICTS = {
    "trl": {"prompt": USER["content"], "completion": "Yes.", "label": True},
    "messages": {"messages": [USER, GOOD], "label": "true"},
    "sharegpt": {
        "conversations": [{"from": "human", "value": USER["content"]}, {"from": "gpt", "value": "Yes."}],
        "label": 1,
    },
    "alpaca": {"instruction": USER["content"], "output": "Yes.", "label": True},
}


def write(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


@pytest.mark.parametrize("name", PREFERENCES)
def test_layouts_of_pairs(tmp_path, name):
    reading = read_examples([write(tmp_path / "rows.jsonl", PREFERENCES[name])])
    (pair,) = reading.examples
    assert reading.kind == "preference"
    assert isinstance(pair, Preference)
    assert pair.source == "rows.jsonl:1"
    asked = "Is the lamp\non?" if name == "alpaca" else USER["content"]
    assert pair.chosen.messages == (Message("user", asked, trained=False), Message("assistant", "Yes."))
    assert pair.rejected.messages == (pair.chosen.messages[0], Message("assistant", "Who knows."))


@pytest.mark.parametrize("name", VERDICTS)
def test_layouts_of_verdicts(tmp_path, name):
    reading = read_examples([write(tmp_path / "rows.jsonl", VERDICTS[name])])
    (row,) = reading.examples
    assert reading.kind == "feedback"
    assert isinstance(row, Feedback)
    assert row.good is True
    assert [(m.role, m.content) for m in row.judged.messages] == [("user", USER["content"]), ("assistant", "Yes.")]


def test_only_the_judged_turn_is_trained(tmp_path):
    turns = [USER, GOOD, {"role": "user", "content": "And now?"}, BAD]
    (row,) = read_examples([write(tmp_path / "rows.jsonl", {"messages": turns, "label": False})]).examples
    assert isinstance(row, Feedback)
    assert [message.trained for message in row.judged.messages] == [False, False, False, True]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same"),
        ({"chosen": "b", "rejected": "c"}, "has no prompt"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "has no rejected"),
        ({"prompt": "a", "chosen": 3, "rejected": "c"}, "chosen must be text or a list of messages"),
        ({"prompt": "a", "completion": "b", "label": "good"}, "label must be true or false. Got good"),
        ({"prompt": "a", "completion": "b", "label": 2}, "label must be true or false. Got 2"),
        ({"messages": [USER], "label": True}, "ends with no assistant turn"),
        ({"text": " "}, "text is empty"),
        ({"text": 5}, "text must be text. Got 5"),
        ({"text": "half \ud83d"}, "holds half a character"),
        ({"messages": [], "label": True}, "has a label and an empty dialogue"),
        ({"conversations": [], "label": True}, "has a label and an empty dialogue"),
        ({"prompt": "a", "chosen": [], "rejected": "c"}, "chosen says nothing behind the prompt"),
        ({"prompt": "a", "chosen": [GOOD, USER], "rejected": "c"}, "chosen must end with an assistant turn"),
        ({"messages": [{"role": [], "content": "a"}]}, "unknown role. Got []"),
        ({"messages": [{**USER, "content": [{"type": "text"}]}, GOOD]}, "only text parts can be trained"),
        ({"messages": [{**USER, "content": [{"type": "text", "text": 5}]}, GOOD]}, "only text parts can be trained"),
        ({"messages": [USER, {**GOOD, "tool_calls": 5}]}, "tool_calls must be a list of objects"),
        ({"messages": [USER, {**GOOD, "tool_calls": [{"function": "x"}]}]}, "tool_calls must be a list of objects"),
        ({"messages": [USER, GOOD], "tools": [{"function": 5}]}, "the function of a tool must be an object"),
        ({"conversations": [{"from": {}, "value": "a"}]}, "unknown speaker in from. Got {}"),
        ({"prompt": "a", "completion": {"from": [], "value": "b"}}, "unknown speaker in from. Got []"),
    ],
)
def test_rows_that_say_nothing_are_named(tmp_path, row, said):
    (problem,) = read_examples([write(tmp_path / "rows.jsonl", row)]).problems
    assert problem[0] == "rows.jsonl:1"
    assert said in problem[1]


def test_pairs_are_no_questions_with_answers(tmp_path):
    with pytest.raises(DataError, match="must hold questions with answers. Got 'preference rows'"):
        read_conversations([write(tmp_path / "rows.jsonl", PREFERENCES["alpaca"])])


@pytest.mark.parametrize(
    ("name", "kind", "columns"),
    [("dpo_en_demo", Preference, {}), ("dpo_zh_demo", Preference, {}), ("kto_en_demo", Feedback, {})],
)
def test_real_sets_are_read_whole(shared_data, name, kind, columns):
    reading = read_examples([str(shared_data / f"{name}.json")], columns=columns)
    assert len(reading.examples) >= 300
    assert not reading.problems
    assert {type(example) for example in reading.examples} == {kind}


def prepared(tmp_path, tokenizer, rows, **split):
    source = Source(path=[write(tmp_path / "rows.jsonl", *rows)], max_lost=1)
    return write_dataset(source, tokenizer, tmp_path / "dataset", cutoff=split.pop("cutoff", 80), split=Split(0.25, 1))


def decoded(tokenizer, row):
    """(all of it, what is trained) as text."""
    return tokenizer.decode(row.ids), tokenizer.decode(row.ids[row.trained])


def test_a_pair_is_two_sequences_and_a_batch_has_the_chosen_first(tmp_path, tokenizer):
    pairs = [{"prompt": f"Lamp {n}?", "chosen": f"On {n}.", "rejected": "Off" * n} for n in range(1, 9)]
    made = prepared(tmp_path, tokenizer, pairs)
    rows = Rows(made.dataset, "train")
    assert (made.kind, made.format, len(rows), rows.each) == ("preference", "preference", 6, 2)
    chosen, rejected = rows.sequences(2)
    number = decoded(tokenizer, chosen)[0].partition("Lamp ")[2][0]
    assert decoded(tokenizer, chosen)[1] == f"On {number}.<|im_end|>"
    assert decoded(tokenizer, rejected)[1] == "Off" * int(number) + "<|im_end|>"
    assert rows.lengths[2] == max(len(chosen.ids), len(rejected.ids))
    assert rows.labels[2] == int(chosen.trained.sum() + rejected.trained.sum())
    batch = collate(rows, [2, 0], pad_token=0)
    assert batch["input_ids"].shape[0] == 4
    assert batch["input_ids"][0, : len(chosen.ids)].tolist() == chosen.ids.tolist()
    assert batch["input_ids"][2, : len(rejected.ids)].tolist() == rejected.ids.tolist()
    again = read_examples([str(made.dataset / "train.jsonl")])
    assert again.kind == "preference"
    assert len(again.examples) == 6


def test_a_verdict_has_its_prompt_with_anothers_answer_beside_it(tmp_path, tokenizer):
    rows = [{"prompt": f"Lamp {n}?", "completion": f"On {n}.", "label": bool(n % 2)} for n in range(8)]
    split = Rows(prepared(tmp_path, tokenizer, rows).dataset, "train")
    first, last = split.sequences(0), split.sequences(len(split) - 1)
    assert decoded(tokenizer, first[1])[1] == decoded(tokenizer, last[0])[1] != decoded(tokenizer, first[0])[1]
    asked = [decoded(tokenizer, row)[0].partition("Lamp ")[2][0] for row in first]
    assert asked[0] == asked[1]
    batch = collate(split, [1, 2, 0], pad_token=0)
    assert batch["good"].tolist() == [bool(split.extras["good"][n]) for n in (1, 2, 0)]
    answers = [decoded(tokenizer, split.sequences(n)[0])[1] for n in (1, 2, 0)]
    assert [bool(int(answer[3]) % 2) for answer in answers] == batch["good"].tolist()


def test_documents_become_one_stream_that_loses_no_token(tmp_path, tokenizer):
    texts = [f"Lamp {n} stands in the hall." * (1 + n % 3) for n in range(12)]
    made = prepared(tmp_path, tokenizer, [{"text": text} for text in texts], cutoff=50)
    assert (made.kind, made.rows, made.truncated, made.dropped) == ("text", 12, 0, 0)
    seen = []
    for split in ("train", "held_out"):
        rows = Rows(made.dataset, split)
        assert set(rows.lengths[:-1]) == {50}
        assert all(row.trained.all() for row in rows)
        seen += "".join(tokenizer.decode(row.ids) for row in rows).removesuffix("<|im_end|>").split("<|im_end|>")
    assert sorted(seen) == sorted(texts)


def test_a_file_of_plain_text_is_a_document(tmp_path):
    (tmp_path / "book.txt").write_text("Chapter 1.\n\nIt rained.\n", encoding="utf-8")
    assert read_examples([str(tmp_path / "book.txt")]).examples == [Text("Chapter 1.\n\nIt rained.\n", "book.txt:1")]


def test_verdicts_of_a_table(tmp_path):
    (tmp_path / "rows.csv").write_text("prompt,completion,label\na,b,1\na,c,0\na,d,TRUE\na,e,yes\n", encoding="utf-8")
    reading = read_examples([str(tmp_path / "rows.csv")])
    assert [example.good for example in reading.examples if isinstance(example, Feedback)] == [True, False, True]
    assert reading.problems == [("rows.csv:4", "label must be true or false. Got yes.")]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("rows.csv", "text,text\na,b\n", "rows.csv:1: the header names a column twice. Got text."),
        ("rows.json", "[" * 100_000, "rows.json: is nested too deeply."),
        ("rows.jsonl", "[" * 100_000, "rows.jsonl:1: is nested too deeply."),
        ("rows.json", f'[{{"text": {"9" * 5000}}}]', "rows.json: not valid JSON"),
        ("rows.jsonl", f'{{"text": {"9" * 5000}}}', "rows.jsonl:1: not valid JSON"),
    ],
)
def test_files_that_cannot_be_rows(tmp_path, name, text, said):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_examples([str(tmp_path / name)])
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("row", "kept"),
    [
        ({"instruction": "On?", "output": " "}, False),
        ({"messages": [USER, {**GOOD, "content": ""}]}, False),
        ({"messages": [USER, {**GOOD, "content": ""}, USER, {**GOOD, "weight": 0}]}, False),
        ({"prompt": "On?", "chosen": "", "rejected": "No."}, False),
        ({"prompt": "On?", "chosen": "Yes.", "rejected": ""}, True),
        ({"prompt": "On?", "completion": "", "label": True}, False),
        ({"prompt": "On?", "completion": "", "label": False}, True),
    ],
)
def test_an_empty_answer_is_trained_as_a_bad_example_only(tmp_path, tokenizer, row, kept):
    other = {**row, **{name: "Yes." for name in ("output", "completion", "chosen") if name in row}}
    other |= {"messages": [USER, GOOD]} if "messages" in row else {}
    source = Source(path=(write(tmp_path / "rows.jsonl", other, other, row),), max_lost=1)
    made = write_dataset(source, tokenizer, tmp_path / "made", cutoff=256, split=Split(0.0, 1))
    assert made.kept == (3 if kept else 2)
    assert made.reasons == ({} if kept else {"the answer is empty. Fill it in or remove the row.": 1})


@pytest.mark.parametrize("letters", [16, 17, 31, 32, 33])
def test_no_token_of_a_document_is_lost(tmp_path, tokenizer, letters):
    """The last row would be one token alone for 16 and 32 letters: with the end token they are one more than full rows."""
    source = Source(path=(write(tmp_path / "rows.jsonl", {"text": "a" * letters}),))
    write_dataset(source, tokenizer, tmp_path / "made", cutoff=16, split=Split(0.0, 1))
    sizes = [len(row.ids) for row in Rows(tmp_path / "made", "train")]
    assert sum(sizes) == letters + 1
    assert min(sizes) > 1
    assert max(sizes) <= 16
