"""Losses without a reference against TRL's functions and by hand; options that do not go together."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import logsigmoid

from tests.runs import losses
from tests.school import PAIRS, TEXTS, VERDICTS
from tunesmith.core.errors import DataError, UsageError
from tunesmith.core.run import Run
from tunesmith.training.loop import loss_series
from tunesmith.training.objectives import Dpo

BETTER = torch.tensor([-0.9, -2.5, -0.01, -6.0])
WORSE = torch.tensor([-1.4, -0.3, -3.0, -6.5])


def with_gradients(loss):
    """(losses, gradients of their sum) of a function of better and worse."""
    better, worse = BETTER.clone().requires_grad_(), WORSE.clone().requires_grad_()
    losses = loss(better, worse)
    losses.sum().backward()
    return torch.cat([losses.detach(), better.grad, worse.grad]).tolist()


def ours(wish: Dpo):
    return with_gradients(lambda better, worse: wish._losses(torch.cat([better, worse]), torch.ones(8)))


@pytest.mark.peer
def test_orpo_is_that_of_trl():
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    trainer = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    theirs = with_gradients(lambda better, worse: -ORPOTrainer.odds_ratio_loss(trainer, better, worse)[0])
    assert ours(Dpo(variant="orpo", beta=0.3)) == pytest.approx(theirs, abs=1e-5)


@pytest.mark.peer
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_simpo_is_that_of_trl(smoothing):
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    trainer = SimpleNamespace(
        beta=2.0, alpha=0.0, loss_type="simpo", simpo_gamma=0.7, label_smoothing=smoothing,
        accelerator=SimpleNamespace(device="cpu"),
    )  # fmt: skip
    theirs = with_gradients(lambda better, worse: CPOTrainer.cpo_loss(trainer, better, worse)[0])
    wish = Dpo(variant="simpo", beta=2.0, margin=0.7, label_smoothing=smoothing)
    assert ours(wish) == pytest.approx(theirs, abs=1e-5)


def test_smoothing_is_the_conservative_loss():
    lead = 0.1 * (BETTER - WORSE)  # Mitchell 2023, "A note on DPO with noisy preferences", equation 3
    wanted = -(0.8 * logsigmoid(lead) + 0.2 * logsigmoid(-lead))
    assert ours(Dpo(label_smoothing=0.2))[:4] == pytest.approx(wanted.tolist())


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"variant": "ipo", "label_smoothing": 0.1}, "label_smoothing goes with sigmoid and simpo"),
        ({"margin": 0.5}, "margin goes with simpo"),
        ({"variant": "orpo", "sft_weight": 1}, "orpo has the better answer's loss already"),
        ({"label_smoothing": 0.5}, "less than 0.5"),
    ],
)
def test_options_that_do_not_go_together(train, rows_file, tmp_path, wish, said):
    with pytest.raises(UsageError, match=said):
        train(tmp_path / "run", objective={"kind": "dpo", **wish})


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ("dpo", "takes preference rows, these are conversation rows .alpaca"),
        ("kto", "takes feedback rows"),
        ("pretrain", "takes text rows"),
    ],
)
def test_rows_of_another_kind_are_refused(train, tmp_path, objective, said):
    with pytest.raises(DataError, match=said):
        train(tmp_path / "run", objective={"kind": objective})


JOBS = {
    "dpo": (PAIRS, {"kind": "dpo"}),
    "ipo": (PAIRS, {"kind": "dpo", "variant": "ipo"}),
    "hinge": (PAIRS, {"kind": "dpo", "variant": "hinge"}),
    "orpo": (PAIRS, {"kind": "dpo", "variant": "orpo"}),
    "simpo": (PAIRS, {"kind": "dpo", "variant": "simpo", "beta": 2}),
    "rpo": (PAIRS, {"kind": "dpo", "sft_weight": 0.5}),
    "kto": (VERDICTS, {"kind": "kto"}),
    "reward": (PAIRS, {"kind": "reward"}),
    "pretrain": (TEXTS, {"kind": "pretrain"}),
}


@pytest.mark.parametrize("name", JOBS)
def test_every_objective_learns_and_resumes_exactly(train, tmp_path, name):
    rows, objective = JOBS[name]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    wishes = {"dataset__path": [str(data)], "objective": objective, "cutoff": 64, "optimizer__epochs": 4}
    whole = train(tmp_path / "whole", save__every_steps=5, save__keep=9, evaluation__keep_best=False, **wishes)
    assert whole.held_out_loss < whole.base_held_out_loss
    assert (whole.perplexity is None) == (name != "pretrain")
    series = loss_series(Run("train", tmp_path / "whole"))
    if name not in {"pretrain", "kto"}:
        assert series[max(series)]["accuracy"] == 1.0
        assert series[max(series)]["margin"] > 0.01
    for path in sorted((tmp_path / "whole" / "checkpoints").iterdir())[1:]:  # as if it had been killed behind step 5
        path.rename(tmp_path / path.name)
    again = train(
        tmp_path / "whole", resume=True, save__every_steps=5, save__keep=9, evaluation__keep_best=False, **wishes
    )
    assert losses(tmp_path / "whole") == [event["loss"] for event in series.values()]
    assert again.held_out_loss == whole.held_out_loss


def test_accumulation_gives_the_loss_of_the_large_batch(train, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text(
        "\n".join(map(json.dumps, PAIRS[:4]))
    )  # one step an epoch: which comes first depends on the batches
    wishes = {"dataset__path": [str(data)], "objective": {"kind": "dpo"}, "optimizer__steps": 4, "evaluation__share": 0}
    train(tmp_path / "a", batch__rows=4, **wishes)
    train(tmp_path / "b", batch__rows=2, batch__accumulate=2, **wishes)
    a, b = (losses(tmp_path / name) for name in "ab")
    assert a == pytest.approx(b, abs=1e-5)
    assert not math.isclose(a[0], a[-1], abs_tol=1e-3)


def test_the_reference_is_computed_once(train, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "references"
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, PAIRS)))
    wishes = {"dataset__path": [str(data)], "objective": {"kind": "dpo"}, "optimizer__steps": 2}
    train(tmp_path / "a", **wishes)
    kept = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(kept) == 2
    train(tmp_path / "b", method={"kind": "full"}, **wishes)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == kept
    train(tmp_path / "c", seed=43, **wishes)  # other rows held out
    assert len(list(folder.iterdir())) == 4


@pytest.mark.parametrize("left", [0, 20, 130])
def test_a_reference_that_was_torn_is_computed_again(train, tmp_path, monkeypatch, left):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, PAIRS)))
    wishes = {"dataset__path": [str(data)], "objective": {"kind": "dpo"}, "optimizer__steps": 1}
    before = train(tmp_path / "a", **wishes)
    whole = {path: path.read_bytes() for path in (tmp_path / "cache" / "references").iterdir()}
    for path, content in whole.items():
        path.write_bytes(content[:left])
    assert train(tmp_path / "b", **wishes).held_out_loss == before.held_out_loss
    assert {path: path.read_bytes() for path in whole} == whole


def test_one_training_builds_on_another(train, tmp_path, tiny_model):
    """sft, dpo over it, reward over sft: each loads in a fresh state with what was below it."""
    import tunesmith
    from tunesmith.core.errors import ModelError
    from tunesmith.models.load import find, load_model
    from tunesmith.models.scoring import load_reward_model, scores

    data = tmp_path / "pairs.jsonl"
    data.write_text("\n".join(map(json.dumps, PAIRS)))
    train(tmp_path / "sft", optimizer__steps=5)
    sft, ids = load_model(find(str(tmp_path / "sft"))), torch.arange(20)[None]
    wishes = {"model": str(tmp_path / "sft"), "dataset__path": [str(data)], "optimizer__steps": 5}
    made = train(tmp_path / "dpo", objective={"kind": "dpo"}, **wishes)
    found = find(str(tmp_path / "dpo"))
    assert found.under == (tmp_path / "sft" / "checkpoints" / "checkpoint-000005",)
    tuned = load_model(found)
    assert not torch.allclose(sft(ids).logits, tuned(ids).logits, atol=1e-3)
    with tuned.disable_adapter():  # what lies under it is the model after sft
        assert torch.allclose(sft(ids).logits, tuned(ids).logits, atol=1e-5)
    merged = load_model(found, merged=True)
    assert torch.allclose(merged(ids).logits, tuned(ids).logits, atol=1e-5)

    train(tmp_path / "reward", objective={"kind": "reward"}, **wishes)
    reward = find(str(tmp_path / "reward"))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    first, second = (scores(load_reward_model(reward), batch).item() for _ in range(2))
    assert first == second
    with pytest.raises(ModelError, match="is a reward model"):
        tunesmith.export(model=str(tmp_path / "reward"), gguf=None, out=tmp_path / "export")

    weights = tmp_path / "sft" / "checkpoints" / "checkpoint-000005" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(ModelError, match="was trained on another base"):
        find(str(made.checkpoint))


@pytest.mark.parametrize(
    "method", [{"kind": "freeze", "layers": 1}, {"kind": "lora", "full_modules": ["lm_head"]}, {"kind": "full"}],
    ids=["freeze", "full_modules", "full"],
)  # fmt: skip
def test_what_is_trained_over_an_adapter_starts_from_its_exact_numbers(train, tmp_path, method):
    from tunesmith.models.load import as_base, find, load_model
    from tunesmith.training.objectives import Sft
    from tunesmith.verbs.train import TrainConfig

    train(tmp_path / "sft", optimizer__steps=5, method={"kind": "lora", "full_modules": ["lm_head"]})
    found = as_base(find(str(tmp_path / "sft")))
    wish = TrainConfig(model="x", dataset="y", method=method, objective=Sft()).method
    begun, exact = wish.put(wish.load(found, "bf16")), dict(load_model(found).named_parameters())
    trained = {name.removeprefix("base_model.model."): p for name, p in begun.named_parameters() if p.requires_grad}
    trained = {name.replace(".modules_to_save.default", ""): p for name, p in trained.items() if "lora_" not in name}
    assert trained
    assert all(torch.equal(p, exact[name]) for name, p in trained.items())
    assert any(not torch.equal(p, p.bfloat16().float()) for p in trained.values())
