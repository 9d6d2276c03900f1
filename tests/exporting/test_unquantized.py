"""What QLoRA's export over the stored base changes is measured, and refused where it is too much."""

from __future__ import annotations

import json

import pytest

from tests.training.conftest import _one_thread, train  # noqa: F401 - fixtures
from tunesmith import cli
from tunesmith.core.examples import Conversation, Message
from tunesmith.exporting.unquantized import trained_in_four_bits, unquantized_base
from tunesmith.models.load import find, load_tokenizer

ROWS = [Conversation((Message("user", f"What colour has lamp {n}?"), Message("assistant", f"Lamp {n} is red.")), "a") for n in (5, 10)]  # fmt: skip


@pytest.fixture
def run(train, tmp_path):  # noqa: F811
    train(tmp_path / "run", method__kind="qlora", optimizer__epochs=4)
    return find(str(tmp_path / "run"))


def test_losses_before_with_and_after(run, tmp_path):
    words = ["--gguf", "null", "--proof.prompts", "2", "--proof.tokens", "4", "--out", str(tmp_path / "x")]
    assert cli.main(["export", str(tmp_path / "run"), *words]) == 0
    made = json.loads((tmp_path / "x" / "result.json").read_text())
    found = made["details"]["unquantized_base"]
    assert found["as_trained"] < found["four_bit_base"] - 0.3
    assert abs(found["exported"] - found["as_trained"]) < 0.2
    assert made["proofs"]["unquantized_base"] is True
    assert "over the four-bit base" in (tmp_path / "x" / "run" / "README.md").read_text()


def test_weights_that_lost_what_was_trained_do_not_pass(run, tiny_model):
    method, tokenizer = trained_in_four_bits(run), load_tokenizer(run)
    assert method
    assert unquantized_base(run, tiny_model, method, tokenizer, ROWS).passed is False
    questions = [Conversation(row.messages[:1], row.source) for row in ROWS]
    assert unquantized_base(run, tiny_model, method, tokenizer, questions).passed is None


def test_only_qlora_is_measured(train, tmp_path):  # noqa: F811
    train(tmp_path / "run", optimizer__steps=2)
    assert trained_in_four_bits(find(str(tmp_path / "run"))) is None
