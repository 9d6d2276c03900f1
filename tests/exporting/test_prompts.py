from __future__ import annotations

import json

import pytest

from tests.exporting.conftest import CHATML, MISTRAL, make_tokenizer
from tunesmith.core.errors import DataError
from tunesmith.core.examples import Conversation, Message
from tunesmith.exporting.prompts import QUESTIONS, ProofConfig, proof_rows, question, template_cases


def write(path, rows):
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return path


def turn(role, text):
    return {"role": role, "content": text}


def test_built_in_questions_when_there_is_nothing_else():
    rows, source = proof_rows(ProofConfig(prompts=3), None)
    assert source == "built-in questions"
    assert len(rows) == 3


def test_the_users_rows_are_spread(tmp_path):
    path = write(tmp_path / "rows.jsonl", [[turn("user", f"q{n}"), turn("assistant", "a")] for n in range(10)])
    rows, source = proof_rows(ProofConfig(data=str(path), prompts=4), None)
    assert source == str(path)
    assert [question(row)[-1].content for row in rows] == ["q0", "q2", "q5", "q7"]


def test_the_runs_held_out_rows(tmp_path):
    (tmp_path / "dataset.json").write_text("{}")
    write(tmp_path / "held_out.jsonl", [[turn("user", "held"), turn("assistant", "a")]])
    rows, source = proof_rows(ProofConfig(prompts=1), str(tmp_path))
    assert source == "held-out rows of the run"
    assert [row.messages[0].content for row in rows] == ["held"]


def test_few_held_out_rows_are_filled_up(tmp_path):
    (tmp_path / "dataset.json").write_text("{}")
    write(tmp_path / "held_out.jsonl", [[turn("user", "held"), turn("assistant", "a")]])
    rows, source = proof_rows(ProofConfig(prompts=4), str(tmp_path))
    assert source == "held-out rows of the run and 3 built-in questions"
    assert [row.messages[0].content for row in rows] == ["held", *QUESTIONS[:3]]


def test_no_held_out_rows(tmp_path):
    (tmp_path / "dataset.json").write_text("{}")
    (tmp_path / "held_out.jsonl").write_text("")
    assert proof_rows(ProofConfig(), str(tmp_path))[1] == "built-in questions"


def test_rows_with_tools_are_not_asked(tmp_path):
    called = {
        **turn("assistant", ""),
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }
    path = write(tmp_path / "rows.jsonl", [[turn("user", "q"), called, turn("tool", "1"), turn("assistant", "a")]])
    with pytest.raises(DataError, match="has no row that"):
        proof_rows(ProofConfig(data=str(path)), None)


def test_a_question_is_all_up_to_the_last_user_turn():
    talk = tuple(Message(role, role) for role in ("system", "user", "assistant", "user", "assistant"))
    assert question(Conversation(talk, "x")) == talk[:4]


def test_every_text_stands_in_every_kind_of_talk():
    cases = template_cases(make_tokenizer(CHATML))
    assert len(cases) == 21
    kinds = {tuple(message.role for message in messages) for messages in cases}
    assert len(kinds) == 6
    for kind in kinds:
        texts = {m.content for messages in cases for m in messages if tuple(x.role for x in messages) == kind}
        assert len(texts) == 8, kind


def test_cases_leave_out_what_the_template_refuses():
    cases = template_cases(make_tokenizer(MISTRAL))
    assert len(cases) == 13
    assert not any(message.role == "system" for messages in cases for message in messages)
