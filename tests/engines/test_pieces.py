from __future__ import annotations

import random

import pytest

from tests.conftest import byte_tokenizer
from tunesmith.engines.pieces import Detokenizer, StopCutter


def cut(text: str, stops: list[str], sizes: random.Random) -> tuple[str, bool]:
    """Feed a text in random pieces; what came out must be final at every moment."""
    cutter, out, at = StopCutter(stops), "", 0
    while at < len(text) and not cutter.stopped:
        size = sizes.randint(1, 4)
        out += cutter.take(text[at : at + size])
        at += size
        assert expected(text, stops).startswith(out)
    return out + cutter.rest(), cutter.stopped


def expected(text: str, stops: list[str]) -> str:
    """The text before the stop string that is whole first, as if letters came one by one."""
    for length in range(1, len(text) + 1):
        starts = [length - len(stop) for stop in stops if text[:length].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


def test_stop_strings_cut_exactly_wherever_the_pieces_end():
    sizes = random.Random(1)
    for _ in range(2000):
        text = "".join(sizes.choice("abc") for _ in range(sizes.randint(0, 20)))
        stops = ["".join(sizes.choice("abc") for _ in range(sizes.randint(1, 5))) for _ in range(sizes.randint(0, 3))]
        out, stopped = cut(text, stops, sizes)
        assert out == expected(text, stops), (text, stops)
        assert stopped == any(stop in text for stop in stops)


def test_text_after_a_stop_string_is_not_given_out():
    cutter = StopCutter(["END"])
    assert cutter.take("helloE") == "hello"
    assert cutter.take("ND world") == ""
    assert cutter.take("more") == ""
    assert cutter.rest() == ""


@pytest.mark.parametrize("text", ["hello", "Zürich 你好，世界 🫖 👩‍👩‍👧", "", "\ufffd in the text", " leading"])
def test_pieces_never_split_a_character(text):
    """Every byte is a token of this tokenizer: a Chinese character comes in three tokens, an emoji in four."""
    tokenizer = byte_tokenizer()
    words = Detokenizer(tokenizer)
    pieces = [words.take(token) for token in tokenizer(text)["input_ids"]]
    assert "".join(pieces) + words.rest() == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_that_never_becomes_whole_is_shown_at_the_end():
    tokenizer = byte_tokenizer()
    words = Detokenizer(tokenizer)
    broken = tokenizer("a你")["input_ids"][:-1]
    assert [words.take(token) for token in broken] == ["a", "", ""]
    assert words.rest() == "\ufffd"


def test_a_model_that_writes_no_valid_text_is_not_held_back_to_the_end():
    tokenizer = byte_tokenizer()
    words = Detokenizer(tokenizer)
    broken = tokenizer("你")["input_ids"][:1] * 20
    pieces = [words.take(token) for token in broken]
    assert any(pieces)
    assert "".join(pieces) + words.rest() == "\ufffd" * 20


def test_special_tokens_are_no_text():
    tokenizer = byte_tokenizer()
    words = Detokenizer(tokenizer)
    ids = tokenizer("a<|im_start|>b")["input_ids"]
    assert "".join(words.take(token) for token in ids) == "ab"
