"""TRL's DPO, KTO and reward trainers are the oracles: on the same batches in fp32 the loss series agree."""

from __future__ import annotations

import json

import pytest

from tests.runs import losses
from tunesmith.data.batch import BatchConfig, order_steps
from tunesmith.data.dataset import Rows
from tunesmith.models.load import find, load_model, load_tokenizer
from tunesmith.models.methods import Full, Lora
from tunesmith.models.scoring import load_reward_model

SEED = 7
pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [
        {"prompt": f"Colour {n}?", "chosen": f"Colour {n} is green{'!' * (n % 5)}", "rejected": "No" + " no" * (n % 3)}
        for n in range(20)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    path = tmp_path_factory.mktemp("verdicts") / "verdicts.jsonl"
    rows = [
        {"prompt": f"Colour {n}?", "completion": "green" if n % 3 else "what" + "?" * n, "label": n % 3 > 0}
        for n in range(20)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def ours(train, folder, method, data, objective, **more):
    """Our loss series, and the rows in the order in which they were trained."""
    made = train(
        folder, method=method.model_dump(), dataset__path=[str(data)], objective=objective, optimizer__epochs=1,
        optimizer__schedule="constant", optimizer__warmup=0, seed=SEED, optimizer__learning_rate=2e-3, **more,
    )  # fmt: skip
    rows = Rows(made.dataset, "train")
    order = [n for step in order_steps(rows.lengths, BatchConfig(rows=4), SEED, 0) for batch in step for n in batch]
    return losses(folder), rows, order


def common(folder):
    return {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "num_train_epochs": 1, "learning_rate": 2e-3,
        "lr_scheduler_type": "constant", "warmup_steps": 0, "weight_decay": 0.0, "max_grad_norm": 1.0, "logging_steps": 1,
        "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "save_strategy": "no", "report_to": "none",
        "train_sampling_strategy": "sequential", "disable_tqdm": True, "seed": SEED, "max_length": None,
        "remove_unused_columns": False,
    }  # fmt: skip


def theirs(kind, config, tiny_model, method, table, monkeypatch):
    """TRL's loss series on rows of token ids, which it does not prepare again."""
    import torch
    from datasets import Dataset

    monkeypatch.setattr(kind, "_prepare_dataset", lambda self, dataset, *rest: dataset)
    found, more = find(str(tiny_model)), {}
    torch.manual_seed(SEED)
    model = (load_reward_model if "Reward" in kind.__name__ else load_model)(found)
    if "Reward" not in kind.__name__ and method.kind == "full":
        more["ref_model"] = load_model(found)
    tokenizer = load_tokenizer(found)
    if "Reward" in kind.__name__:  # TRL scores at the last token that is no pad token; ours is the end token
        unused = set(range(len(tokenizer))) - {token for row in table for ids in row.values() for token in ids}
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(min(unused))
        model.config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(SEED)
    trainer = kind(
        model=method.put(model), args=config, train_dataset=Dataset.from_list(table), processing_class=tokenizer, **more
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def split(row):
    """(prompt, answer up to its last trained token) as token ids."""
    ids, trained = row.ids.tolist(), row.trained.tolist()
    start, end = trained.index(True), len(trained) - trained[::-1].index(True)
    return ids[:start], ids[start:end]


def preference_table(rows, order):
    made = []
    for number in order:
        (prompt, chosen), (_, rejected) = map(split, rows.sequences(number))
        made.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    return made


@pytest.mark.parametrize("method", [Full(), Lora(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize(("variant", "beta"), [("sigmoid", 0.1), ("ipo", 0.1), ("hinge", 0.5)])
def test_loss_series_of_dpo(train, pairs, tiny_model, tmp_path, monkeypatch, method, variant, beta):
    from trl import DPOConfig, DPOTrainer

    wish = {"kind": "dpo", "variant": variant, "beta": beta}
    mine, rows, order = ours(train, tmp_path / "ours", method, pairs, wish)
    config = DPOConfig(**common(tmp_path / "trl"), loss_type=[variant], beta=beta)
    other = theirs(DPOTrainer, config, tiny_model, method, preference_table(rows, order), monkeypatch)
    assert len(mine) == len(other) == 5
    assert mine == pytest.approx(other, abs=1e-4)
    assert mine[0] != pytest.approx(mine[-1], abs=1e-3)  # something was learned, so the steps were compared too


@pytest.mark.parametrize("method", [Full(), Lora(rank=4)], ids=["full", "lora"])
def test_loss_series_of_kto(train, verdicts, tiny_model, tmp_path, monkeypatch, method):
    from trl import KTOConfig, KTOTrainer

    weights = {"good_weight": 1.0, "bad_weight": 1.5}
    mine, rows, order = ours(train, tmp_path / "ours", method, verdicts, {"kind": "kto", **weights})
    table = []
    for number in order:
        (prompt, answer), (_, mismatched) = map(split, rows.sequences(number))
        table.append(
            {
                "prompt_ids": prompt,
                "completion_ids": answer,
                "KL_completion_ids": mismatched,
                "label": bool(rows.extras["good"][number]),
            }
        )
    config = KTOConfig(**common(tmp_path / "trl"), desirable_weight=1.0, undesirable_weight=1.5, beta=0.1)
    other = theirs(KTOTrainer, config, tiny_model, method, table, monkeypatch)
    assert len(mine) == len(other) == 5
    assert mine == pytest.approx(other, abs=1e-4)
    assert mine[0] != pytest.approx(mine[-1], abs=1e-3)


@pytest.mark.parametrize("method", [Full(), Lora(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("centre", [0.0, 0.05])
def test_loss_series_of_reward(train, pairs, tiny_model, tmp_path, monkeypatch, method, centre):
    from trl import RewardConfig, RewardTrainer

    mine, rows, order = ours(train, tmp_path / "ours", method, pairs, {"kind": "reward", "centre": centre})
    table = []
    for n in order:  # TRL reads the score at the last token of all, ours at the one that ends the answer
        chosen, rejected = (prompt + answer for prompt, answer in map(split, rows.sequences(n)))
        table.append({"chosen_ids": chosen, "rejected_ids": rejected})
    config = RewardConfig(**common(tmp_path / "trl"), center_rewards_coefficient=centre or None)
    other = theirs(RewardTrainer, config, tiny_model, method, table, monkeypatch)
    assert len(mine) == len(other) == 5
    assert mine == pytest.approx(other, abs=1e-4)
    assert mine[0] != pytest.approx(mine[-1], abs=1e-3)
