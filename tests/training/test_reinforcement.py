"""PPO and GRPO: worked examples of their arithmetic, TRL's GRPO loss as oracle, and rewards that go up."""

from __future__ import annotations

import json
import random
from string import ascii_lowercase
from types import SimpleNamespace

import pytest
import torch

from tests.training.test_objectives import PAIRS
from tunesmith import verbs
from tunesmith.core.config import load
from tunesmith.core.errors import DataError, ModelError, UsageError
from tunesmith.core.run import Run
from tunesmith.models.load import find
from tunesmith.models.scoring import load_reward_model, reward_model_bytes
from tunesmith.planning.table import plan_lines
from tunesmith.training.advantage import gae, group_advantages, whiten
from tunesmith.training.loop import loss_series
from tunesmith.training.objectives import Grpo, Ppo


def test_gae_by_hand():
    rewards, values = torch.tensor([[0.0, 0.0, 1.0, 9.0]]), torch.tensor([[0.5, 0.4, 0.2, 7.0]])
    mask = torch.tensor([[True, True, True, False]])
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=0.8)
    third = 1.0 - 0.2
    second = 0.9 * 0.2 - 0.4 + 0.72 * third
    first = 0.9 * 0.4 - 0.5 + 0.72 * second
    assert advantages[0].tolist() == pytest.approx([first, second, third, 0.0])
    assert returns[0].tolist() == pytest.approx([first + 0.5, second + 0.4, 1.0, 0.0])


def test_an_answer_in_the_middle_of_a_line():
    """What stands before and behind the answer changes nothing."""
    rewards, values = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.3, 0.6]])
    alone = gae(rewards, values, torch.ones(1, 2, dtype=torch.bool), gamma=1.0, lam=0.95)[0]
    padded = [torch.nn.functional.pad(it, (2, 1), value=5.0) for it in (rewards, values)]
    inside = gae(*padded, torch.tensor([[False, False, True, True, False]]), gamma=1.0, lam=0.95)[0]
    assert inside[0].tolist() == pytest.approx([0, 0, *alone[0].tolist(), 0])


def test_with_lambda_one_the_return_is_the_reward_to_come():
    torch.manual_seed(0)
    rewards, values = torch.randn(3, 6), torch.randn(3, 6)
    returns = gae(rewards, values, torch.ones(3, 6, dtype=torch.bool), gamma=1.0, lam=1.0)[1]
    assert torch.allclose(returns, rewards.flip(1).cumsum(1).flip(1), atol=1e-5)


def test_whitening_is_over_all_batches():
    parts = [torch.tensor([[1.0, 2.0, 99.0]]), torch.tensor([[3.0, 6.0]])]
    white = whiten(parts, [torch.tensor([[True, True, False]]), torch.tensor([[True, True]])])
    numbers = torch.cat([white[0][0, :2], white[1][0]])
    assert numbers.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert numbers.var().item() == pytest.approx(1.0, abs=1e-4)
    assert white[0][0, 2] == 0.0


def test_groups_are_compared_with_themselves():
    rewards = torch.tensor([[1.0, 3.0], [5.0, 5.0]])
    assert group_advantages(rewards, scaled=False).tolist() == [[-1.0, 1.0], [0.0, 0.0]]
    scaled = group_advantages(rewards, scaled=True)
    assert scaled[0].tolist() == pytest.approx([-0.7071, 0.7071], abs=1e-3)
    assert scaled[1].tolist() == [0.0, 0.0]


LABELS = torch.tensor([[-100, -100, 4, 5], [-100, 3, 6, -100]])
SAID = torch.tensor([[0.0, -1.0, -0.5], [-2.0, -0.1, 0.0]])
OLD = torch.tensor([[0.0, -1.4, -0.4], [-1.6, -0.2, 0.0]])
MASK = LABELS[:, 1:] != -100


class Critic:
    """Says what it is told: log-probabilities with a gradient, and values."""

    def __init__(self, said, values):
        self.said, self.values, self.training = said, values, True

    def __call__(self, batch):
        return -self.said, self.values


def test_clipped_losses_of_ppo_by_hand():
    wish = Ppo(reward="x", clip=0.2, value_clip=0.2, value_weight=0.5)
    batch = {
        "labels": LABELS, "old": OLD, "advantages": torch.tensor([[0.0, 1.0, -2.0], [0.5, -1.0, 0.0]]),
        "values": torch.tensor([[0.0, 0.1, 0.2], [0.3, 0.4, 0.0]]),
        "returns": torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.4, 0.0]]),
    }  # fmt: skip
    values = torch.tensor([[9.0, 0.6, 0.1], [0.3, 0.5, 9.0]])
    loss, seen = wish.loss(Critic(SAID, values), batch)
    policy = value = 0.0
    for i, j in MASK.nonzero().tolist():
        ratio, advantage = (SAID[i, j] - OLD[i, j]).exp().item(), batch["advantages"][i, j].item()
        policy += -min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
        now, old, wanted = (it[i, j].item() for it in (values, batch["values"], batch["returns"]))
        held = min(max(now, old - 0.2), old + 0.2)
        value += 0.5 * max((now - wanted) ** 2, (held - wanted) ** 2)
    assert seen["policy_loss"] == pytest.approx(policy, abs=1e-5)
    assert seen["value_loss"] == pytest.approx(value, abs=1e-5)
    assert loss.item() == pytest.approx(policy + 0.5 * value, abs=1e-5)
    assert seen["clipped"] == 2  # exp(0.4) and exp(-0.4)
    assert wish.count(batch) == 4


def test_ppo_pays_for_divergence_and_gets_the_score_at_the_last_token():
    wish = Ppo(reward="x", gamma=1.0, lam=1.0, kl=0.1)
    batch = {
        "labels": LABELS, "old": SAID, "reference": OLD, "values": torch.zeros(2, 3), "score": torch.tensor([2.0, -1.0]),
    }  # fmt: skip
    model = SimpleNamespace(kl=torch.tensor(0.1))
    seen = wish.prepare(model, [batch])
    nats = (SAID - OLD)[MASK]  # two tokens of each answer
    wanted = [
        2.0 - 0.1 * (nats[0] + nats[1]),
        2.0 - 0.1 * nats[1],
        -1.0 - 0.1 * (nats[2] + nats[3]),
        -1.0 - 0.1 * nats[3],
    ]
    assert batch["returns"][MASK].tolist() == pytest.approx([float(it) for it in wanted], abs=1e-5)
    assert seen["kl"] == pytest.approx(float(nats.sum()) / 2, abs=1e-5)


@pytest.mark.parametrize(("nats", "factor"), [(12.0, 1.02), (3.0, 0.98), (6.3, 1.005)])
def test_the_price_of_divergence_follows_its_target(nats, factor):
    wish = Ppo(reward="x", kl_target=6.0)
    old = torch.zeros(1, 3)
    old[0, 1:] = nats / 2
    batch = {
        "labels": LABELS[:1], "old": old, "reference": torch.zeros(1, 3), "values": torch.zeros(1, 3),
        "score": torch.ones(1),
    }  # fmt: skip
    model = SimpleNamespace(kl=torch.tensor(0.05))
    assert wish.prepare(model, [batch])["kl_price"] == pytest.approx(0.05)
    assert model.kl.item() == pytest.approx(0.05 * factor, rel=1e-5)


@pytest.mark.peer
@pytest.mark.parametrize("variant", ["dapo", "grpo", "dr_grpo"])
@pytest.mark.parametrize("kl", [0.0, 0.2])
def test_loss_and_gradient_of_grpo_are_those_of_trl(monkeypatch, variant, kl):
    from trl.trainer.grpo_trainer import GRPOTrainer

    reference = OLD + 0.3
    advantages = torch.tensor([1.5, -0.7])
    ours = SAID.clone().requires_grad_()
    monkeypatch.setattr("tunesmith.models.head.label_losses", lambda model, batch: -ours)
    wish = Grpo(reward="x", variant=variant, kl=kl, answer_tokens=3)
    batch = {"labels": LABELS, "old": OLD, "reference": reference, "advantages": advantages[:, None]}
    loss = wish.loss(None, batch)[0] / wish.count(batch)
    loss.backward()

    theirs = SAID.clone().requires_grad_()
    mask = MASK.int()
    trainer = SimpleNamespace(
        loss_type=variant, beta=kl, epsilon_low=0.2, epsilon_high=0.2, importance_sampling_level="token",
        aux_loss_enabled=False, _entropy_bonus_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False,
        max_completion_length=3, current_gradient_accumulation_steps=1, tools=None,
        args=SimpleNamespace(delta=None, steps_per_generation=1, use_bias_correction_kl=False),
        model=SimpleNamespace(training=True), _metrics={"train": __import__("collections").defaultdict(list)},
        accelerator=SimpleNamespace(num_processes=1, gather=lambda it: it, reduce=lambda it, **how: it),
        _get_per_token_logps_and_entropies=lambda *a, **k: (theirs, torch.zeros(2, 3), None),
    )  # fmt: skip
    inputs = {
        "prompt_ids": torch.zeros(2, 1, dtype=torch.long), "prompt_mask": torch.ones(2, 1, dtype=torch.long),
        "completion_ids": torch.zeros(2, 3, dtype=torch.long), "completion_mask": mask, "advantages": advantages,
        "old_per_token_logps": OLD, "ref_per_token_logps": reference, "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    other = GRPOTrainer._compute_loss(trainer, None, inputs)
    other.backward()
    assert loss.item() == pytest.approx(other.item(), abs=1e-5)
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-5)
    assert ours.grad.abs().max() > 0.01


@pytest.fixture
def letters(tmp_path):
    """A reward function: the share of plain letters in the answer, of which a random model says one in five."""
    path = tmp_path / "reward.py"
    path.write_text(
        "def score(prompt, answer, row):\n    plain = [it for it in answer if it.isascii() and it.isalpha()]\n"
        "    return len(plain) / max(len(answer), 1)\n"
    )
    return f"{path}:score"


RL = {
    "optimizer__steps": 16,
    "optimizer__schedule": "constant",
    "optimizer__warmup": 0,
    "evaluation__every_steps": 16,
    "evaluation__share": 0.4,
}


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_the_reward_goes_up_on_held_out_prompts_and_resumes_exactly(train, tmp_path, letters, kind):
    more = {"answers": 8} if kind == "grpo" else {"kl": 0}
    objective = {"kind": kind, "reward": letters, "answer_tokens": 8, **more}
    wishes = {
        **RL, "objective": objective, "optimizer__learning_rate": 6e-3, "batch__rows": 8, "save__every_steps": 10,
        "method": {"kind": "full"}, "optimizer__steps": 28 if kind == "ppo" else 16,
    }  # fmt: skip
    whole = train(tmp_path / "whole", save__keep=9, **wishes)
    assert whole.held_out_reward > whole.base_held_out_reward + 0.15
    assert whole.held_out_loss is None
    series = loss_series(Run("train", tmp_path / "whole"))
    assert {"reward", "answer_tokens", "ended", "clipped"} <= set(series[1])
    for path in sorted((tmp_path / "whole" / "checkpoints").iterdir())[1:]:  # as if it had been killed behind step 10
        path.rename(tmp_path / path.name)
    again = train(tmp_path / "whole", resume=True, save__keep=9, **wishes)
    resumed = loss_series(Run("train", tmp_path / "whole"))
    assert [(it["loss"], it["reward"]) for it in resumed.values()] == [
        (it["loss"], it["reward"]) for it in series.values()
    ]
    assert again.held_out_reward == whole.held_out_reward


def test_from_sft_over_a_reward_model_to_ppo(train, tmp_path):
    """The reward model learns that letters are better than signs, and the policy says more letters."""
    chance, signs = random.Random(0), [chr(code) for code in range(33, 256) if not chr(code).isalpha()]
    pairs = [
        {"prompt": f"Lamp {n}?", "chosen": "".join(chance.choices(ascii_lowercase, k=8)), "rejected": "".join(chance.choices(signs, k=8))}
        for n in range(96)
    ]  # fmt: skip
    data = tmp_path / "pairs.jsonl"
    data.write_text("\n".join(map(json.dumps, pairs)))
    train(tmp_path / "sft", optimizer__steps=5)
    over = {"model": str(tmp_path / "sft"), "dataset__path": [str(data)]}
    reward = train(tmp_path / "reward", objective={"kind": "reward"}, optimizer__steps=40, **over)
    assert reward.held_out_loss < 0.1 < reward.base_held_out_loss
    objective = {"kind": "ppo", "reward": str(tmp_path / "reward"), "answer_tokens": 8, "kl": 0}
    wishes = {**RL, **over, "optimizer__learning_rate": 6e-3, "optimizer__steps": 28, "batch__rows": 8}
    made = train(tmp_path / "ppo", objective=objective, method={"kind": "full"}, **wishes)
    assert made.held_out_reward > made.base_held_out_reward + 0.5  # three seeds gained 1.2 to 1.9


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_plan_counts_the_reward_model_and_the_value_head(train, tmp_path, tiny_model, letters, method, precision):
    data, reward = tmp_path / "pairs.jsonl", tmp_path / "reward"
    data.write_text("\n".join(map(json.dumps, PAIRS)))
    wishes = {"dataset__path": [str(data)], "optimizer__steps": 1, "method": {"kind": method}}
    train(reward, objective={"kind": "reward"}, **wishes)
    held = sum(p.nbytes for p in load_reward_model(find(str(reward)), precision).parameters())
    assert reward_model_bytes(find(str(reward)), precision) == pytest.approx(held, rel=0.01)
    plans = {
        name: planned(tmp_path / name, tiny_model, precision=precision, objective=objective)
        for name, objective in {
            "sft": {"kind": "sft"},
            "function": {"kind": "grpo", "reward": letters},
            "grpo": {"kind": "grpo", "reward": {str(reward): 1.0, letters: 0.5}},
            "ppo": {"kind": "ppo", "reward": str(reward)},
        }.items()
    }
    counted = {name: plan.reward_bytes for name, plan in plans.items()}
    head = 16 * (json.loads((tiny_model / "config.json").read_text())["hidden_size"] + 1)
    assert counted["sft"] == counted["function"] == 0
    assert counted["grpo"] == pytest.approx(held, rel=0.01)
    assert counted["ppo"] == counted["grpo"] + head
    assert plans["grpo"].total_bytes - plans["function"].total_bytes == counted["grpo"]
    assert plans["ppo"].total_bytes - plans["sft"].total_bytes == counted["ppo"]
    assert any(line.split()[0] == "reward" for line in plan_lines(plans["ppo"]))
    assert not any(line.split()[0] == "reward" for line in plan_lines(plans["sft"]))


def planned(out, model, **wishes):
    """The plan verb's verdict on a training; answers are as long as the rows of a plan without them are short."""
    drawn = wishes["objective"]["kind"] != "sft"
    document = {"model": str(model), "cutoff": 32 if drawn else 160, "batch": {"rows": 4}, **wishes}
    return verbs.perform("plan", load(verbs.config_class("plan"), document), out, quiet=True)[0]


@pytest.mark.parametrize(
    ("wish", "error", "said"),
    [
        ({"kind": "ppo"}, UsageError, "objective.reward"),
        ({"kind": "ppo", "reward": "gone.py:score"}, UsageError, "no such file"),
        ({"kind": "grpo", "reward": "HERE:other"}, UsageError, "has no function 'other'"),
        ({"kind": "grpo", "reward": "HERE:broken"}, DataError, "broken: raised ZeroDivisionError"),
        ({"kind": "grpo", "reward": "HERE:word"}, DataError, "must return a number. Got 'good'|Got good"),
        ({"kind": "grpo", "reward": "HERE:lost"}, DataError, "must return a number that is finite. Got nan"),
        ({"kind": "grpo", "reward": "HERE"}, UsageError, "names no function.*rewards.py:NAME"),
        (
            {"kind": "grpo", "reward": "FOLDER/torn.py:score"},
            UsageError,
            "torn.py: cannot be read: line 1: invalid syntax",
        ),
        (
            {"kind": "grpo", "reward": "FOLDER/lacks.py:score"},
            UsageError,
            "lacks.py: raised ModuleNotFoundError.*nowhere",
        ),
        ({"kind": "grpo", "reward": "MODEL"}, ModelError, "is no reward model"),
        ({"kind": "ppo", "reward": "HERE:score", "kl": 0, "kl_target": 6}, UsageError, "kl_target: .*kl is 0"),
        ({"kind": "grpo", "reward": "HERE:score", "answers": 1}, UsageError, "objective.answers"),
    ],
)
def test_rewards_that_cannot_be_had(train, tmp_path, tiny_model, wish, error, said):
    path = tmp_path / "rewards.py"
    path.write_text(
        "def broken(prompt, answer, row):\n    return 1 / 0\n\ndef word(prompt, answer, row):\n    return 'good'\n"
        "\ndef score(prompt, answer, row):\n    return 1\n\ndef lost(prompt, answer, row):\n    return float('nan')\n"
    )
    (tmp_path / "torn.py").write_text("def score(:\n")
    (tmp_path / "lacks.py").write_text("import nowhere\n")
    for word, meant in {"HERE": path, "MODEL": tiny_model, "FOLDER": tmp_path}.items():
        wish = {name: it.replace(word, str(meant)) if isinstance(it, str) else it for name, it in wish.items()}
    with pytest.raises(error, match=said):
        train(tmp_path / "run", objective=wish, optimizer__steps=1)


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_in_bf16_an_update_starts_from_the_policy_that_drew(train, tmp_path, letters, kind):
    """Before its first move the policy says what it said when the answers were drawn: every ratio is one, and the loss is
    the negative mean of advantages whose mean is zero."""
    more = {"answers": 4, "scaled": False, "variant": "grpo"} if kind == "grpo" else {"epochs": 1, "value_weight": 0}
    objective = {"kind": kind, "reward": letters, "answer_tokens": 8, "kl": 0, **more}
    wishes = {"objective": objective, "optimizer__steps": 1, "precision": "bf16", "evaluation__share": 0}
    train(tmp_path / "run", method={"kind": "full"}, **wishes)
    first = loss_series(Run("train", tmp_path / "run"))[1]
    assert first["clipped"] == 0
    assert abs(first["loss"]) < 1e-6


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_a_divergence_that_nobody_measured_is_no_zero(train, tmp_path, letters, kind):
    objective = {"kind": kind, "reward": letters, "answer_tokens": 4, "kl": 0}
    train(tmp_path / "run", objective=objective, optimizer__steps=1)
    events = [event for event in Run("train", tmp_path / "run").events() if event["event"] in {"step", "evaluation"}]
    assert events
    assert not [name for event in events for name in event if "kl" in name]


def test_grpo_without_a_finite_policy_ends_in_one_line(train, tmp_path, letters):
    objective = {"kind": "grpo", "reward": letters, "answer_tokens": 4, "answers": 2}
    with pytest.raises(ModelError, match="its logits are no numbers"):
        train(tmp_path / "run", objective=objective, optimizer__steps=4, optimizer__learning_rate=1e30,
              optimizer__warmup=0, evaluation__share=0, method={"kind": "full"})  # fmt: skip


@pytest.mark.parametrize("method", [{"kind": "prompt", "tokens": 4}, {"kind": "p_tuning", "tokens": 4, "hidden": 8}])
def test_grpo_trains_virtual_tokens(train, tmp_path, letters, method):
    """Drawn with the virtual tokens, compared with the model without them, and resumed to the same numbers."""
    objective = {"kind": "grpo", "reward": letters, "answer_tokens": 8, "answers": 4, "kl": 0.05, "epochs": 2}
    wishes = {
        "objective": objective, "method": method, "optimizer__steps": 4, "optimizer__learning_rate": 0.05,
        "save__every_steps": 2, "save__keep": 9, "evaluation__every_steps": 4,
    }  # fmt: skip
    made = train(tmp_path / "run", **wishes)
    series = loss_series(Run("train", tmp_path / "run"))
    assert all(step["update"] > 0 and step["gradient_norm"] > 0 for step in series.values())
    evaluations = [event for event in Run("train", tmp_path / "run").events() if event["event"] == "evaluation"]
    assert evaluations[-1]["held_out_kl"] != evaluations[0]["held_out_kl"] != 0  # virtual tokens of drawn words diverge
    (tmp_path / "run" / "checkpoints" / "checkpoint-000004").rename(tmp_path / "last")
    again = train(tmp_path / "run", resume=True, **wishes)
    resumed = loss_series(Run("train", tmp_path / "run"))
    assert [(it["loss"], it["reward"]) for it in resumed.values()] == [
        (it["loss"], it["reward"]) for it in series.values()
    ]
    assert again.held_out_reward == made.held_out_reward


def test_clipped_is_a_share_of_the_tokens_whatever_the_mean_is_over():
    """Two of four tokens are clipped: exp(0.4) under a gain and exp(-0.4) under a loss."""
    batch = {"labels": LABELS, "old": OLD, "advantages": torch.tensor([[1.0], [-1.0]])}

    class Policy(torch.nn.Module):
        pass

    for variant in ("dapo", "grpo", "dr_grpo"):
        wish = Grpo(reward="x", variant=variant, answer_tokens=64)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tunesmith.models.head.label_losses", lambda model, batch: -SAID)
            seen = wish.loss(Policy(), batch)[1]
        assert seen["clipped"] / wish.count(batch) == pytest.approx(0.5), variant


def test_full_tuning_has_no_reference_left(train, tmp_path, letters):
    wishes = {"objective": {"kind": "ppo", "reward": letters, "answer_tokens": 4}, "optimizer__steps": 1}
    with pytest.raises(UsageError, match="objective.kl: the untrained model is the one with its adapter switched off"):
        train(tmp_path / "run", method={"kind": "full"}, **wishes)
    wishes["objective"]["kl"] = 0
    train(tmp_path / "free", method={"kind": "full"}, **wishes)
