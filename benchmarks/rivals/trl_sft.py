"""TRL's SFT trainer on the race's rows, as its documentation has it: python trl_sft.py OPTIONS.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main(wish: dict) -> None:
    rows = [json.loads(line) for line in Path(wish["rows"]).read_text(encoding="utf-8").splitlines()]
    lora = LoraConfig(
        r=wish["rank"], lora_alpha=wish["alpha"], lora_dropout=0.0, target_modules=LINEAR, task_type="CAUSAL_LM",
        layers_to_transform=wish["layers"],
    )  # fmt: skip
    common = {
        "output_dir": wish["out"], "num_train_epochs": wish["epochs"], "learning_rate": wish["rate"], "max_length": 512,
        "lr_scheduler_type": "cosine", "warmup_steps": 0.1, "seed": 42, "use_cpu": True, "report_to": "none",
        "save_strategy": "no", "logging_steps": 10, "bf16": True,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(wish["model"], dtype=wish["dtype"])
    if wish["is_whole"]:
        model.requires_grad_(False)
        for number in wish["layers"]:
            model.model.layers[number].requires_grad_(True)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**{**common, **wish["options"]}), train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(wish["model"]), peft_config=None if wish["is_whole"] else lora,
    )  # fmt: skip
    done = trainer.train()
    trainer.save_model(wish["out"])
    peak = {"peak_bytes": torch.cuda.max_memory_reserved()} if torch.cuda.is_available() else {}
    print(json.dumps({"seconds": done.metrics["train_runtime"], **peak}))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
