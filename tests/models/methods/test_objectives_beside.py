"""Adapters beside the weights under every objective: pairs, verdicts, plain text, scores; and under noise and smoothing."""

from __future__ import annotations

import json

import pytest
import torch

from tests.models.test_head import random_model, some_rows
from tests.runs import losses
from tests.training.conftest import _one_thread, train  # noqa: F401 - fixtures
from tests.training.test_objectives import JOBS
from tunesmith.core.run import Run
from tunesmith.models.head import label_losses
from tunesmith.models.load import find, gives_scores
from tunesmith.models.methods import Bottleneck, Prefix, Prompt
from tunesmith.models.scoring import head_of, load_reward_model, scores
from tunesmith.training.loop import loss_series

METHODS = {
    "prompt": {"kind": "prompt", "tokens": 8}, "prefix": {"kind": "prefix", "tokens": 4},
    "p_tuning": {"kind": "p_tuning", "tokens": 8, "hidden": 16}, "bottleneck": {"kind": "bottleneck"},
}  # fmt: skip


def learn(train, tmp_path, objective: str, method: dict, *, resume: bool = False, **more):  # noqa: F811
    rows, wish = JOBS[objective]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    return train(
        tmp_path / "run", resume=resume, dataset__path=[str(data)], objective=wish, cutoff=64, method=method,
        optimizer__epochs=2, optimizer__learning_rate=0.03, save__every_steps=3, save__keep=9,
        evaluation__keep_best=False, **more,
    )  # fmt: skip


@pytest.mark.parametrize("objective", ["dpo", "kto", "reward", "pretrain"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_it_learns_and_resumes_exactly(train, tmp_path, objective, method):  # noqa: F811
    whole = learn(train, tmp_path, objective, method)
    assert whole.held_out_loss < whole.base_held_out_loss
    before = losses(tmp_path / "run")
    for path in sorted((tmp_path / "run" / "checkpoints").iterdir())[1:]:  # as if it had been killed behind step 3
        path.rename(tmp_path / path.name)
    again = learn(train, tmp_path, objective, method, resume=True)
    assert losses(tmp_path / "run") == before
    assert again.held_out_loss == whole.held_out_loss


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_reward_model_keeps_its_head(train, tmp_path, method):  # noqa: F811
    learn(train, tmp_path, "reward", method)
    found = find(str(tmp_path / "run"))
    assert gives_scores(found)
    twice = [load_reward_model(found).eval() for _ in range(2)]
    with torch.no_grad():
        ours, same = (scores(model, some_rows()) for model in twice)
    assert torch.equal(ours, same)
    plain = head_of(load_reward_model(find(str(found.base)))).weight
    assert not any(torch.equal(plain, p) for name, p in twice[0].named_parameters() if ".score." in f".{name}")


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_reinforcement_is_held_to_the_untrained_model(train, tmp_path, method):  # noqa: F811
    code = tmp_path / "reward.py"
    code.write_text("def score(prompt, answer, row):\n    return sum(it.isalpha() for it in answer) / 8\n")
    objective = {"kind": "ppo", "reward": f"{code}:score", "answer_tokens": 6, "kl": 0.1}
    train(
        tmp_path / "run", method=method, objective=objective, optimizer__steps=3, optimizer__schedule="constant",
        evaluation__share=0.1, batch__rows=4,
    )  # fmt: skip
    steps = list(loss_series(Run("train", tmp_path / "run")).values())
    assert (steps[0]["kl"] == 0) == (method["kind"] == "bottleneck"), "virtual tokens change the model from the start"
    assert steps[-1]["kl"] != 0


def test_smoothing_is_that_of_the_padded_batch():
    for method in (Prompt(tokens=9), Prefix(tokens=5), Bottleneck()):
        torch.manual_seed(0)
        model, batch = method.put(random_model("llama")).eval(), some_rows()
        ours = label_losses(model, batch, smoothing=0.1)
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, -40:]
        wanted = torch.nn.functional.cross_entropy(
            logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:], reduction="none", label_smoothing=0.1
        )
        assert torch.allclose(ours, wanted, atol=2e-5)


def test_noise_falls_on_words_and_never_on_virtual_tokens():
    torch.manual_seed(0)
    model, batch, seen = Prompt(tokens=9).put(random_model("llama")).train(), some_rows(), []
    model.get_decoder().layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    label_losses(model, batch, noise=None)
    label_losses(model, batch, noise=5.0)
    quiet = seen[0][0]
    noisy = seen[1][0, : 39 + 3 * 49].split([39, 49, 49, 49])  # the shorter row lies first
    own = quiet[25 : 25 + 14 + 3 * 24].split([14, 24, 24, 24])
    words = [row[9:] - torch.cat([quiet[9:25], rest]) for row, rest in zip(noisy, own, strict=True)]
    assert all(torch.equal(row[:9], quiet[:9]) for row in noisy)
    limits = 5.0 / (batch["attention_mask"].sum(dim=1).sort().values * 32).sqrt()
    largest = torch.stack([row.abs().amax() for row in words])
    assert (largest <= limits).all()
    assert (largest > 0.9 * limits).all()
