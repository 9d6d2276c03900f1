"""Learning rates of the schedules, and AdamW over trainable parameters only."""

from __future__ import annotations

import math

import pytest
import torch

from tunesmith.training.optimizer import OptimizerConfig, learning_rate, make_optimizer, set_rate


def rates(steps: int = 10, **wishes) -> list[float]:
    wish = OptimizerConfig(learning_rate=1.0, **wishes)
    return [learning_rate(wish, step, steps) for step in range(steps)]


def test_constant():
    assert rates(schedule="constant", warmup=0) == [1.0] * 10


def test_linear_with_warmup_steps():
    assert rates(schedule="linear", warmup=2) == pytest.approx(
        [0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    )


def test_cosine_with_a_share_of_warmup():
    wanted = [0.5, 1.0, *(0.5 * (1 + math.cos(math.pi * done / 8)) for done in range(8))]
    assert rates(schedule="cosine", warmup=0.2) == pytest.approx(wanted)


def test_after_warmup_schedules_are_those_of_transformers():
    from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

    for name, make in [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)]:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        schedule = make(optimizer, 3, 20)
        theirs = []
        for _ in range(20):
            theirs.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        assert rates(20, schedule=name, warmup=3)[3:] == pytest.approx(theirs[3:])


def test_only_trainable_parameters_are_given_to_the_optimizer():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2).requires_grad_(False), torch.nn.Linear(2, 3))
    optimizer = make_optimizer(model, OptimizerConfig(weight_decay=0.1, learning_rate=0.01), lambda name: 1.0)
    assert [p.shape for p in optimizer.param_groups[0]["params"]] == [(3, 2), (3,)]
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


@pytest.mark.peer
def test_lora_plus_is_pefts(tiny_model):
    """One step of ours and of peft's LoRA+ optimizer from the same gradients."""
    from peft.optimizers import create_loraplus_optimizer

    from tunesmith.models.load import find, load_model
    from tunesmith.models.methods import Lora

    method, after = Lora(rank=2, plus_ratio=16), []
    for theirs in (False, True):
        torch.manual_seed(0)
        model = method.put(load_model(find(str(tiny_model))))
        if theirs:
            optimizer = create_loraplus_optimizer(
                model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16, weight_decay=0.0
            )
        else:
            optimizer = make_optimizer(model, OptimizerConfig(learning_rate=1e-3), method.rate_factor)
            set_rate(optimizer, 1e-3)
        ids = torch.arange(20)[None]
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        after.append({name: p.detach() for name, p in model.named_parameters() if p.requires_grad})
    assert len(after[0]) == 28
    for name, ours in after[0].items():
        assert torch.allclose(ours, after[1][name], atol=1e-7), name
    moved = max(float(p.abs().max()) for name, p in after[0].items() if ".lora_B." in name)
    assert moved == pytest.approx(16e-3, rel=1e-3)  # Adam's first step is as long as its rate
