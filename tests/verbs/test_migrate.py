"""migrate writes configs and explains; train, evaluate and plan take LLaMA-Factory's files as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tunesmith.cli import main

HERE = Path(__file__).resolve().parents[1] / "migration"
TRAINED = (
    "sft_lora_2023",
    "sft_lora_2025",
    "sft_full_2026",
    "sft_freeze_2024",
    "sft_qlora_2024",
    "pretrain_2025",
    "dpo_2024",
    "simpo_2025",
    "kto_2024",
)


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)


def train(sample: str, model: Path, out: Path, *more: str) -> dict:
    words = ["train", f"samples/{sample}.yaml", "--model", str(model), "--out", str(out), "--quiet", *more]
    assert main(words) == 0
    return json.loads((out / "result.json").read_text())


@pytest.mark.parametrize("sample", TRAINED)
def test_files_of_all_years_train(sample, tiny_model, tmp_path):
    made = train(
        sample, tiny_model, tmp_path / "run", "--precision", "fp32", "--track", "[]", "--devices", "{kind: one}"
    )
    assert made["steps"] >= 2
    assert Path(made["checkpoint"]).is_dir()
    assert (tmp_path / "run-migrated" / "explained.md").is_file()


def test_a_reward_model_then_ppo(tiny_model, tmp_path):
    train("reward_2025", tiny_model, tmp_path / "reward")
    made = train("ppo_2024", tiny_model, tmp_path / "ppo", "--objective.reward", str(tmp_path / "reward"))
    assert made["steps"] == 2


def test_real_identity_and_alpaca(shared_data, tiny_model, tmp_path):
    file = tmp_path / "their.yaml"
    keys = {"model_name_or_path": "meta-llama/Llama-3-8B-Instruct", "stage": "sft", "do_train": True, "template": "llama3",
            "dataset": "identity,alpaca_en_demo", "dataset_dir": str(shared_data), "output_dir": str(tmp_path / "saves")}  # fmt: skip
    file.write_text(
        yaml.safe_dump(
            {**keys, "max_samples": 12, "cutoff_len": 1024, "max_steps": 2, "per_device_train_batch_size": 2}
        )
    )
    assert main(["train", str(file), "--model", str(tiny_model), "--quiet", "--dataset.max_lost", "1"]) == 0
    made = json.loads((tmp_path / "saves" / "result.json").read_text())  # output_dir, since --out is not given
    assert made["steps"] == 2
    assert (tmp_path / "saves-migrated" / "explained.md").is_file()


def test_a_second_try_does_not_stumble_over_the_first(tiny_model, tmp_path, capsys):
    words = ["train", "samples/sft_lora_2023.yaml", "--out", str(tmp_path / "run"), "--quiet"]
    assert main([*words, "--model", str(tmp_path / "nowhere")]) == 4
    assert main([*words, "--model", str(tiny_model)]) == 0
    assert (tmp_path / "run-migrated-2").is_dir()


def test_migrate_writes_explains_and_says(tmp_path, capsys):
    assert main(["migrate", "samples/sft_lora_2025.yaml", "--out", str(tmp_path / "m")]) == 0
    said = capsys.readouterr().out
    assert "is a file of LLaMA-Factory; it asks for: train" in said
    assert "lora_rank -> method.rank: 4" in said
    made = json.loads((tmp_path / "m" / "result.json").read_text())
    assert made["configs"] == {"train": str(tmp_path / "m" / "train.yaml")}
    assert made["rows"] == {"rows.jsonl": 16}
    explained = (tmp_path / "m" / "explained.md").read_text()
    keys = yaml.safe_load((HERE / "samples/sft_lora_2025.yaml").read_text())
    assert all(f"| `{key}` |" in explained for key in keys)
    assert "learning_rate: 0.0001  # learning_rate: 0.0001" in (tmp_path / "m" / "train.yaml").read_text()
    assert main(["train", str(tmp_path / "m" / "train.yaml"), "--dry-run"]) == 0


def test_what_would_be_lost_is_refused_and_can_be_left(tmp_path, capsys):
    file = tmp_path / "galore.yaml"
    keys = yaml.safe_load((HERE / "samples/sft_full_2026.yaml").read_text())
    file.write_text(yaml.safe_dump({**keys, "use_galore": True, "galore_rank": 64}))
    assert main(["migrate", str(file), "--out", str(tmp_path / "a")]) == 2
    assert "use_galore: this optimizer is not there" in capsys.readouterr().err
    assert not (tmp_path / "a" / "train.yaml").exists()
    assert "**lost**" in (tmp_path / "a" / "explained.md").read_text()
    assert json.loads((tmp_path / "a" / "result.json").read_text())["lost"] == ["use_galore"]
    assert main(["train", str(file), "--out", str(tmp_path / "run")]) == 2
    assert not (tmp_path / "run").exists()
    assert main(["migrate", str(file), "--lost", "leave", "--out", str(tmp_path / "b"), "--quiet"]) == 0
    assert "# lost: use_galore: true" in (tmp_path / "b" / "train.yaml").read_text()


def test_predict_asks_and_export_and_chat_are_known(tiny_model, tmp_path, capsys):
    words = [
        "evaluate",
        "samples/predict_2024.yaml",
        "--model",
        str(tiny_model),
        "--out",
        str(tmp_path / "e"),
        "--quiet",
    ]
    assert main(words) == 0
    assert json.loads((tmp_path / "e" / "result.json").read_text())["rows"] == 3
    assert (
        main(
            ["plan", "samples/sft_lora_2025.yaml", "--model", str(tiny_model), "--out", str(tmp_path / "p"), "--quiet"]
        )
        == 0
    )
    assert main(["export", "samples/export_2025.yaml", "--dry-run"]) == 0
    assert main(["chat", "samples/chat_2025.yaml", "--dry-run"]) == 0
    assert main(["train", "samples/export_2025.yaml", "--dry-run"]) == 2
    assert "asks for export, not for train. tunesmith export" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "their.yaml"
    keys = yaml.safe_load((HERE / "samples/sft_lora_2025.yaml").read_text())
    file.write_text(yaml.safe_dump({**keys, "dataset_dir": str(HERE / "data")}))
    assert main(["train", str(file), "--dry-run"]) == 0
    assert "train hf:someone/Small-Chat by lora (sft)" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["their.yaml"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\n", "is no file of LLaMA-Factory"),
        ("model_name_or_path: a/b\nlora_rank: [1]\nstage: sft\ndo_train: true\n", "lora_rank: must be a number"),
        ("model_name_or_path: a/b\ndo_train: maybe\n", "do_train: must be true or false"),
        ("model_name_or_path: a/b\ndo_train: true\nlora_rank: 4000\ndataset: lamps\n", "method.rank: must be at most 1024"),
        ("model_name_or_path: a/b\ndo_train: true\nlora_rnk: 4\ndataset: lamps\n", "Did you mean 'lora_rank'"),
        ("model_name_or_path: a/b\ndo_train: true\ndataset: lamps\ndataset_dir: nowhere\n", "no dataset_info.json in nowhere"),
    ],
)  # fmt: skip
def test_bad_files_end_in_one_line(text, said, tmp_path, capsys):
    file = tmp_path / "their.yaml"
    file.write_text(text)
    assert main(["migrate", str(file), "--out", str(tmp_path / "m"), "--quiet"]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error


def test_what_is_ours_stays_ours(tmp_path, tiny_model, rows_file):
    config = tmp_path / "ours.yaml"
    config.write_text(f"model: {tiny_model}\ndataset: {rows_file}\noptimizer: {{steps: 1}}\n")
    assert main(["train", str(config), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    assert not (tmp_path / "run-migrated").exists()
