"""The loop learns, counts honestly, accumulates exactly, and resumes bit for bit."""

from __future__ import annotations

import json
import math

import pytest

from tests.runs import events, goes_on_after, losses
from tunesmith import verbs
from tunesmith.core import files
from tunesmith.core.config import load
from tunesmith.core.errors import DataError, UsageError
from tunesmith.data.dataset import Rows
from tunesmith.training import checkpoint
from tunesmith.training.passes import batch_of


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_training_lowers_the_held_out_loss(train, tmp_path, kind):
    made = train(tmp_path / "run", method__kind=kind, optimizer__epochs=4)
    assert made.held_out_loss < made.base_held_out_loss - 0.3
    assert made.perplexity == pytest.approx(math.exp(made.held_out_loss))
    assert made.steps == 36
    assert (tmp_path / "run" / "loss.png").stat().st_size > 5000
    assert (tmp_path / "run" / "loss.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_accumulated_batches_give_the_step_of_one_large_batch(train, tmp_path):
    train(tmp_path / "one", batch__rows=8)
    train(tmp_path / "four", batch__rows=2, batch__accumulate=4)
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "four"), abs=2e-5)


def test_a_batch_in_passes_gives_the_step_of_the_whole(train, tmp_path):
    train(tmp_path / "whole", batch__tokens=None)
    train(tmp_path / "passes", batch__tokens=96)
    assert losses(tmp_path / "whole") == pytest.approx(losses(tmp_path / "passes"), abs=2e-5)


@pytest.mark.parametrize(
    "objective", [{"kind": "kto"}, {"kind": "ppo", "reward": "r"}, {"kind": "grpo", "reward": "r"}]
)
def test_objectives_that_read_the_rows_together_refuse_passes(objective):
    document = {"model": "embedded", "dataset": {"path": ["rows.jsonl"]}, "objective": objective}
    config = load(verbs.config_class("train"), document, [])
    assert batch_of(config, "cpu").tokens is None
    config = load(verbs.config_class("train"), document, [("batch.tokens", 96)])
    with pytest.raises(UsageError, match="batch.tokens.*reads the rows of a batch together"):
        batch_of(config, "cpu")


def test_a_pass_is_limited_on_a_cpu_and_a_pair_counts_twice():
    document = {"model": "embedded", "dataset": {"path": ["rows.jsonl"]}}
    config = load(verbs.config_class("train"), document, [])
    assert [batch_of(config, *how).tokens for how in (("cpu",), ("cpu", 2), ("cuda",))] == [1536, 768, None]


def test_tokens_are_counted_without_padding(train, tmp_path):
    made = train(tmp_path / "run", optimizer__epochs=1)
    dataset = files.read_json(made.dataset / "dataset.json")
    held = sum(Rows(made.dataset, "held_out").lengths)
    assert sum(event["tokens"] for event in events(tmp_path / "run", "step")) == dataset["tokens"] - held


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("stop_after", [3, 7])
def test_a_resumed_run_has_the_losses_it_would_have_had(train, tmp_path, kind, stop_after):
    wishes = {
        "method__kind": kind, "save__every_steps": 2, "evaluation__every_steps": 5,
        **({"method__dropout": 0.2} if kind == "lora" else {}),
    }  # fmt: skip
    goes_on_after(stop_after, train, tmp_path, wishes)


def test_resuming_a_run_that_has_ended_changes_nothing_of_what_it_says(train, tmp_path):
    first = train(tmp_path / "run")
    again = train(tmp_path / "run", resume=True)
    assert again.tokens_per_second == pytest.approx(first.tokens_per_second, rel=0.01)
    same = (
        "checkpoint",
        "steps",
        "epochs",
        "train_loss",
        "held_out_loss",
        "base_held_out_loss",
        "trainable_parameters",
    )
    assert {name: getattr(again, name) for name in same} == {name: getattr(first, name) for name in same}
    assert again.peak_memory_bytes >= max(event["memory_bytes"] for event in events(tmp_path / "run", "step"))


def test_a_torn_checkpoint_is_set_aside_and_the_one_before_is_used(train, tmp_path, monkeypatch):
    wishes = {"save__every_steps": 4, "save__keep": 10}
    train(tmp_path / "whole", **wishes)
    train(tmp_path / "cut", **wishes)
    newest = sorted((tmp_path / "cut" / "checkpoints").iterdir())[-1]
    (newest / "state" / "optimizer.safetensors").write_bytes(b"torn")
    train(tmp_path / "cut", resume=True, **wishes)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert newest.with_name(f"{newest.name}.torn").is_dir()
    assert any("set aside" in event["text"] for event in events(tmp_path / "cut", "warning"))


def test_only_the_newest_and_the_best_checkpoint_stay(train, tmp_path):
    made = train(
        tmp_path / "run", optimizer__epochs=6, optimizer__learning_rate=0.05, save__every_steps=3, save__keep=2,
        evaluation__every_steps=4,
    )  # fmt: skip
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    best = min(events(tmp_path / "run", "evaluation")[1:], key=lambda event: event["held_out_loss"])
    assert made.checkpoint.name == f"checkpoint-{best['step']:06d}"
    assert made.held_out_loss == best["held_out_loss"]
    assert names <= {made.checkpoint.name, "checkpoint-000054", "checkpoint-000051", "checkpoint-000052"}


def test_training_stops_early_when_the_held_out_loss_no_longer_falls(train, tmp_path):
    made = train(
        tmp_path / "run", optimizer__epochs=40, optimizer__learning_rate=0.3, optimizer__schedule="constant",
        evaluation__every_steps=2, evaluation__patience=3,
    )  # fmt: skip
    after_best = [e for e in events(tmp_path / "run", "evaluation") if e["step"] > int(made.checkpoint.name[-6:])]
    assert made.stopped_early
    assert made.steps < 360
    assert len(after_best) == 3


def test_patience_without_held_out_rows_is_refused(train, tmp_path):
    with pytest.raises(
        UsageError, match="evaluation.patience: no rows are held out, so nothing says when to stop. Got 2"
    ):
        train(tmp_path / "run", evaluation__share=0, evaluation__patience=2)


GRPO = {"kind": "grpo", "answers": 2, "answer_tokens": 60}


@pytest.mark.parametrize(
    ("wishes", "longest"), [({}, 0), ({"method": {"kind": "prompt", "tokens": 40}}, 87), ({"objective": GRPO}, 93)]
)
def test_rows_beyond_the_context_are_told(train, tmp_path, wishes, longest):
    """The longest row has 47 tokens, 33 of them the prompt, for a model that reads 80: with virtual tokens and answers they are too long."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from tiny import byte_tokenizer, write_tiny_model

    rotary = write_tiny_model(tmp_path / "rotary")
    config = json.loads((rotary / "config.json").read_text(encoding="utf-8"))
    (rotary / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 80}), encoding="utf-8")
    learned, tokenizer = tmp_path / "learned", byte_tokenizer()
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.eos_token_id}
    GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_positions=80, n_embd=16, n_layer=1, n_head=2, **ends)
    ).save_pretrained(learned)
    tokenizer.save_pretrained(learned)
    (tmp_path / "reward.py").write_text("def one(prompt, answer, row):\n    return len(answer)\n", encoding="utf-8")
    if "objective" in wishes:
        wishes = {"objective": {**GRPO, "reward": f"{tmp_path}/reward.py:one"}}
    row = {"instruction": "x" * 14, "output": "y" * 12}
    rows_file = tmp_path / "rows.jsonl"
    rows_file.write_text(
        "\n".join([json.dumps(row)] + [json.dumps({**row, "instruction": "x" * n}) for n in range(1, 8)])
    )
    wishes |= {"dataset__path": [str(rows_file)], "optimizer__steps": 1, "evaluation__share": 0}
    train(tmp_path / "run", model=str(rotary), **wishes)
    said = [event["text"] for event in events(tmp_path / "run", "warning") if "the model reads 80" in event["text"]]
    assert [f"the longest row has {longest} tokens" in text for text in said] == [True] * bool(longest)
    if longest:
        with pytest.raises(DataError, match=f"dataset: the longest row has {longest} tokens.*the model reads 80"):
            train(tmp_path / "other", model=str(learned), **wishes)
    else:
        train(tmp_path / "other", model=str(learned), **wishes)


def test_a_failing_save_leaves_the_checkpoint_before_whole(train, tmp_path, monkeypatch):
    from tunesmith.core.errors import CapacityError

    real, calls = files.write_json, []

    def full(path, value):
        if path.name == "position.json":
            calls.append(path)
            if len(calls) == 2:
                raise OSError(28, "No space left on device")
        real(path, value)

    monkeypatch.setattr(files, "write_json", full)
    with pytest.raises(CapacityError, match="No space left on device"):
        train(tmp_path / "run", save__every_steps=2)
    monkeypatch.undo()
    (left,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert left.name == "checkpoint-000002"
    assert files.verify(left) is None
    assert not (tmp_path / "run" / "result.json").exists()


def test_checkpoints_load_in_plain_peft(train, tmp_path, tiny_model):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from tunesmith.models.load import find, load_model

    made = train(tmp_path / "run", method__rslora=True)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), made.checkpoint)
    ids = torch.arange(20)[None]
    ours = load_model(find(str(tmp_path / "run")))
    assert torch.equal(plain(ids).logits, ours(ids).logits)
    with plain.disable_adapter():
        assert not torch.allclose(plain(ids).logits, ours(ids).logits)


def test_the_manifest_names_the_base(train, tmp_path):
    made = train(tmp_path / "run", optimizer__steps=1)
    manifest = json.loads((made.checkpoint / files.MANIFEST).read_text(encoding="utf-8"))
    assert manifest["method"]["kind"] == "lora"
    assert len(manifest["base"]["weights_sha256"]) == 64
    assert manifest["step"] == 1
    assert checkpoint.folder_of(tmp_path / "run", 1) == made.checkpoint
