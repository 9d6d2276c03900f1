from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.exporting.conftest import make_tokenizer
from tunesmith.core.examples import Conversation, Message
from tunesmith.engines.contract import Reply
from tunesmith.exporting.certificate import Interview, Reading, end_tokens, gguf_answers, read_by, template_tokens
from tunesmith.exporting.gguf import Facts
from tunesmith.exporting.greedy import Recorded
from tunesmith.exporting.merge import trained_end

FACTS = Facts((258,), None, False, "")
CASES = [(Message("user", "1\n\n2"),), (Message("system", "s"), Message("user", "水"))]
ROW = Conversation((Message("user", "a"), Message("assistant", "b")), "rows.jsonl:1")


def test_equal_readers_pass():
    tokenizer = make_tokenizer()
    trained = read_by(tokenizer, CASES, [ROW])
    proof = template_tokens(trained, {"llama.cpp": read_by(tokenizer, CASES, [ROW])}, ["one", "two", ROW.source])
    assert proof.passed
    assert proof.line == "2 prompts and 1 rows have the trained token ids in llama.cpp"


def test_one_other_token_is_named():
    trained = read_by(make_tokenizer(), CASES, [ROW])
    other = replace(trained, prompts=[trained.prompts[0], [*trained.prompts[1][:-1], 7]])
    proof = template_tokens(trained, {"the saved tokenizer": trained, "llama.cpp": other}, ["one", "two", ROW.source])
    assert proof.passed is False
    (difference,) = proof.measured["differing"]
    assert (difference["reader"], difference["case"]) == ("llama.cpp", "two")
    assert difference["token"] == len(trained.prompts[1]) - 1


@pytest.mark.parametrize("damage", [[5], []])
def test_a_second_bos_or_a_lost_end_is_seen(damage):
    trained = Reading([[1, 2, 3]], [[1, 2]])
    proof = template_tokens(trained, {"x": Reading([[*damage, 1, 2, 3, *damage]], [[1, 2, *damage, 9]])}, ["p", "r"])
    assert proof.passed is False


def heard(*replies: tuple[str, str], prompt_tokens: int = 2) -> Interview:
    return Interview(FACTS, Reading([], []), [Reply(text, finish, prompt_tokens, 3) for text, finish in replies])


def answered(tokenizer, text: str, leads: float = 9.0) -> Recorded:
    """An answer whose every token leads all others by `leads` nats."""
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], trained_end(tokenizer)]
    logits = torch.zeros(len(ids), len(tokenizer))
    logits[torch.arange(len(ids)), torch.tensor(ids)] = leads
    return Recorded([8, 9], ids, logits)


def prove(tokenizer, merged, said, **options):
    return gguf_answers(merged, said, tokenizer, **{"weights": "q8_0", "agreement": 0.9, **options})


def test_equal_answers_agree():
    tokenizer = make_tokenizer()
    proof = prove(tokenizer, [answered(tokenizer, "Paris.")], heard((" Paris.", "stop")))
    assert proof.passed
    assert proof.line == "1 of 1 greedy answers equal"


def test_a_decided_model_that_answers_otherwise_fails():
    tokenizer = make_tokenizer()
    proof = prove(tokenizer, [answered(tokenizer, "Paris.")], heard(("Parma.", "stop")))
    assert proof.passed is False
    (one,) = proof.measured["differing"]
    assert (one["token"], one["lead_nats"], one["gguf"]) == (3, 9.0, "Parma.")


def test_an_undecided_model_may_part():
    tokenizer = make_tokenizer()
    proof = prove(tokenizer, [answered(tokenizer, "Paris.", leads=0.4)], heard(("Parma.", "stop")))
    assert proof.passed
    assert "0 of 1 greedy answers equal, 1 part where the model is undecided (lead at most 0.40 nats)" in proof.line
    assert (
        prove(tokenizer, [answered(tokenizer, "Paris.", 0.4)], heard(("Parma.", "stop")), weights="f16").passed is False
    )


def test_an_answer_that_does_not_end_is_seen():
    tokenizer = make_tokenizer()
    proof = prove(tokenizer, [answered(tokenizer, "Paris")], heard(("Paris, and so on", "length")))
    assert proof.passed is False
    assert proof.measured["differing"][0]["token"] == 5


def test_an_answer_that_ends_too_early_is_seen():
    tokenizer = make_tokenizer()
    proof = prove(tokenizer, [answered(tokenizer, "Paris it is")], heard(("Paris", "stop")))
    assert proof.passed is False
    assert proof.measured["differing"][0]["token"] == 5


def test_the_length_limit_is_no_difference():
    tokenizer = make_tokenizer()
    assert prove(tokenizer, [answered(tokenizer, "Paris it is")], heard(("Paris it", "length"))).passed


def test_half_a_character_is_no_difference():
    tokenizer = make_tokenizer()  # a token a byte: three for each of these
    proof = prove(tokenizer, [answered(tokenizer, "水壶")], heard(("水杯", "stop")))
    assert proof.passed is False
    assert proof.measured["differing"][0]["token"] == 3


def test_the_share_decides():
    tokenizer = make_tokenizer()
    merged = [answered(tokenizer, text) for text in ("a", "b", "c", "d")]
    said = heard(("a", "stop"), ("b", "stop"), ("c", "stop"), ("x", "stop"))
    assert prove(tokenizer, merged, said, agreement=0.9).passed is False
    assert prove(tokenizer, merged, said, agreement=0.75).passed


def test_prompts_of_another_length_fail():
    tokenizer = make_tokenizer()
    proof = prove(tokenizer, [answered(tokenizer, "a")], heard(("a", "stop"), prompt_tokens=3))
    assert proof.passed is False
    assert "1 prompts of another length" in proof.line


@pytest.mark.parametrize(
    ("generation", "facts", "passed"),
    [((258, 3), FACTS, True), ((258,), None, True), ((3,), FACTS, False), ((258,), replace(FACTS, ends=(3,)), False)],
)
def test_every_runtime_must_stop_at_the_trained_end(generation, facts, passed):
    proof = end_tokens(258, generation, facts, make_tokenizer())
    assert proof.passed is passed


def test_no_end_token_is_no_end():
    assert end_tokens(None, (1,), FACTS, make_tokenizer()).passed is False
