"""TRL's SFTTrainer is the oracle: on the same batches in fp32 the loss series agree."""

from __future__ import annotations

import pytest

from tests.runs import losses
from tunesmith.data.batch import BatchConfig, order_steps
from tunesmith.data.dataset import Rows
from tunesmith.models.load import find, load_model, load_tokenizer
from tunesmith.models.methods import Full, Lora

RATE = 0.003
METHODS = {
    "full": Full(),
    "lora": Lora(),
    "rslora": Lora(rslora=True, rank=4),
    "dora": Lora(dora=True, rank=4),
}


def labels(row) -> list[int]:
    return [token if trained else -100 for token, trained in zip(row.ids.tolist(), row.trained.tolist(), strict=True)]


def trl_losses(model_folder, method, rows: Rows, folder, seed: int) -> list[float]:
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    found = find(str(model_folder))
    model = load_model(found)
    torch.manual_seed(seed)
    model = method.put(model)
    order = [row for step in order_steps(rows.lengths, BatchConfig(rows=4), seed, 0) for batch in step for row in batch]
    table = Dataset.from_list([{"input_ids": rows[n].ids.tolist(), "labels": labels(rows[n])} for n in order])
    config = SFTConfig(
        output_dir=str(folder), per_device_train_batch_size=4, num_train_epochs=1, learning_rate=RATE,
        lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0, logging_steps=1,
        use_cpu=True, bf16=False, gradient_checkpointing=False, save_strategy="no", report_to="none", max_length=None,
        train_sampling_strategy="sequential", seed=seed, packing=False,
        dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = SFTTrainer(model=model, args=config, train_dataset=table, processing_class=load_tokenizer(found))
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.peer
@pytest.mark.parametrize("name", METHODS)
def test_loss_series_of_sft(train, tmp_path, tiny_model, name):
    pytest.importorskip("trl")
    method = METHODS[name]
    made = train(
        tmp_path / "ours", method=method.model_dump(), optimizer__epochs=1, optimizer__learning_rate=RATE, optimizer__schedule="constant",
        optimizer__warmup=0, seed=7,
    )  # fmt: skip
    ours = losses(tmp_path / "ours")
    theirs = trl_losses(tiny_model, method, Rows(made.dataset, "train"), tmp_path / "trl", 7)
    assert len(ours) == len(theirs) == 9
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert ours[0] - ours[-1] > 0.1  # something was learned, so the steps were compared too
