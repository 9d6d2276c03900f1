"""Every key has a verdict, and the value that the person meant arrives in our config."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from theirs import DATA, MIGRATION, OURS, TRAIN, migrate, verdict
from tunesmith import verbs
from tunesmith.core.config import load
from tunesmith.core.errors import DataError, TunesmithError, UsageError
from tunesmith.migration.groups import grouped
from tunesmith.migration.llamafactory import VERBS, is_llamafactory, read
from tunesmith.migration.names import ASKED, MAPPED, RENAMED

ASKS = {
    "lora": TRAIN,
    "qlora": {**TRAIN, "quantization_bit": 4},
    "freeze": {**TRAIN, "finetuning_type": "freeze"},
    "full": {**TRAIN, "finetuning_type": "full"},
    "prefix": {**TRAIN, "finetuning_type": "p_tuning"},
    "pretrain": {**TRAIN, "stage": "pt", "dataset": "leaflet"},
    "reward": {**TRAIN, "stage": "rm", "dataset": "pairs"},
    "dpo": {**TRAIN, "stage": "dpo", "dataset": "pairs"},
    "simpo": {**TRAIN, "stage": "dpo", "dataset": "pairs", "pref_loss": "simpo"},
    "kto": {**TRAIN, "stage": "kto", "dataset": "verdicts"},
    "ppo": {**TRAIN, "stage": "ppo", "reward_model": "r"},
    "predict": {
        "model_name_or_path": "a/b",
        "do_predict": True,
        "predict_with_generate": True,
        "eval_dataset": "lamps",
        "dataset_dir": DATA,
    },
    "chat": {"model_name_or_path": "a/b"},
    "export": {"model_name_or_path": "a/b", "export_dir": "e"},
}
DEFAULTS = {key: name.default for key, name in MAPPED.items()} | {
    key: default for key, (_, default) in grouped().items()
}
KNOWN = {**DEFAULTS, **{old: DEFAULTS[new] for old, new in RENAMED.items()}}


def another(default: object) -> object:
    if isinstance(default, bool):
        return not default
    return default + 1 if isinstance(default, int) else default / 2 + 0.25 if isinstance(default, float) else "x"


def test_the_tables_know_every_name_once():
    assert not set(MAPPED) & set(grouped())
    assert not set(RENAMED) & {*MAPPED, *grouped()}
    assert set(RENAMED.values()) <= {*MAPPED, *grouped()}
    assert {name.needs for name in MAPPED.values()} - {""} <= set(ASKED)
    assert len(KNOWN) > 450


def test_every_target_is_an_option_of_ours():
    words = {"verb train", "verb evaluate", "--out", "--resume", "-", "objective", "model", "--"}
    kinds = ("lora", "qlora", "freeze", "prefix", "sft", "dpo", "kto", "ppo", "transformers", "")
    known = {n.target for n in MAPPED.values() for v in VERBS for k in kinds if OURS.option(v, n.target, k)}
    assert {name.target for name in MAPPED.values()} - known <= words


@pytest.mark.parametrize("job", ASKS)
def test_every_known_key_has_a_verdict_in_every_kind_of_file(job):
    for key, default in KNOWN.items():
        document = {**ASKS[job], key: another(default)}
        try:
            migrated = migrate(**document)
        except UsageError as error:
            assert key in str(error) or "model" in str(error)  # a value of another type
            continue
        assert set(document) <= {verdict.key for verdict in migrated.verdicts}, key


def test_all_keys_at_once_have_a_verdict():
    migrated = migrate(**{**KNOWN, **ASKS["lora"]})
    assert set(KNOWN) <= {verdict.key for verdict in migrated.verdicts}


@pytest.mark.parametrize("sample", sorted((MIGRATION / "samples").glob("*.yaml")), ids=lambda path: path.stem)
def test_samples_of_all_years_make_configs_that_load(sample, monkeypatch):
    monkeypatch.chdir(MIGRATION)
    document = yaml.safe_load(sample.read_text())
    migrated = read(document, sample, OURS, Path("out"))
    assert set(document) <= {verdict.key for verdict in migrated.verdicts}
    assert not migrated.lost
    for verb, ours in migrated.documents.items():
        assert load(verbs.config_class(verb), ours)


def test_defaults_of_llamafactory_are_written_down():
    migrated = migrate(**TRAIN)
    train = migrated.documents["train"]
    assert train["method"] == {"kind": "lora", "rank": 8, "alpha": 16}
    assert train["optimizer"] == {"learning_rate": 5e-5, "schedule": "linear", "warmup": 0.0}
    assert train["evaluation"] == {"share": 0.0, "keep_best": False}
    assert train["cutoff"] == 2048
    assert ("cutoff_len", "cutoff", 2048) in [(one.key, one.path, one.value) for one in migrated.implied]


def test_what_repeats_a_default_of_ours_is_left_out():
    migrated = migrate(**TRAIN, lr_scheduler_type="cosine", num_train_epochs=3.0, use_galore=False)
    assert "schedule" not in migrated.documents["train"]["optimizer"]
    assert {verdict(migrated, key).outcome for key in ("lr_scheduler_type", "num_train_epochs", "use_galore")} == {
        "default"
    }


def test_names_of_older_years():
    old = {
        "dpo_beta": 0.3,
        "dpo_ftx": 0.5,
        "dpo_loss": "hinge",
        "checkpoint_dir": "saves/a",
        "evaluation_strategy": "no",
    }
    migrated = migrate(**{**ASKS["dpo"], **old, "max_source_length": 100, "max_target_length": 60, "neft_alpha": None})
    train = migrated.documents["train"]
    assert train["objective"] == {"kind": "dpo", "variant": "hinge", "beta": 0.3, "sft_weight": 0.5}
    assert train["model"] == "saves/a"
    assert train["cutoff"] == 160
    assert "pref_beta today" in verdict(migrated, "dpo_beta").text


@pytest.mark.parametrize(
    ("keys", "option", "value"),
    [
        ({"lora_rank": 32}, "method", {"kind": "lora", "rank": 32, "alpha": 64}),
        ({"lora_target": "q_proj, v_proj"}, "method", {"kind": "lora", "rank": 8, "alpha": 16, "targets": ["q_proj", "v_proj"]}),
        ({"pissa_init": True, "lora_alpha": 32}, "method", {"kind": "lora", "rank": 8, "init": "pissa_niter_16"}),
        ({"finetuning_type": "p_tuning", "pre_seq_len": 64, "prefix_projection": True}, "method", {"kind": "prefix", "tokens": 64, "projection": True}),
        ({"max_steps": 7, "warmup_steps": 3}, "optimizer", {"learning_rate": 5e-5, "steps": 7, "schedule": "linear", "warmup": 3}),
        ({"lr_scheduler_type": "constant", "warmup_ratio": 0.1}, "optimizer", {"learning_rate": 5e-5, "schedule": "constant", "warmup": 0.0}),
        ({"optim": "adamw_bnb_8bit"}, "optimizer", {"learning_rate": 5e-5, "schedule": "linear", "warmup": 0.0, "kind": "adamw_8bit"}),
        ({"neftune_noise_alpha": 5, "label_smoothing_factor": 0.1}, "objective", {"kind": "sft", "label_smoothing": 0.1, "neftune_alpha": 5}),
        ({"val_size": 3}, "evaluation", {"share": 0.25, "keep_best": False}),
        ({"val_size": 0.5, "eval_strategy": "epoch", "per_device_train_batch_size": 2}, "evaluation", {"share": 0.5, "keep_best": False, "every_steps": 3}),
        ({"val_size": 0.5, "eval_strategy": "steps", "logging_steps": 20}, "evaluation", {"share": 0.5, "keep_best": False, "every_steps": 20}),
        ({"report_to": ["wandb", "none"]}, "track", ["wandb"]),
        ({"deepspeed": "examples/ds_z2_offload_config.json"}, "devices", {"kind": "zero", "stage": 2, "offload": "optimizer"}),
        ({"deepspeed": {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}, "ray_num_workers": 4}, "devices",
         {"kind": "zero", "stage": 3, "offload": "all", "processes": 4}),
        ({"fsdp": "full_shard auto_wrap"}, "devices", {"kind": "fsdp"}),
        ({"ray_num_workers": 2}, "devices", {"kind": "ddp", "processes": 2}),
        ({"disable_gradient_checkpointing": True}, "memory", {"checkpointing": "off"}),
        ({"save_total_limit": 5}, "save", {"every_steps": 500, "keep": 5}),
    ],
)  # fmt: skip
def test_values_arrive(keys, option, value):
    migrated = migrate(**{**TRAIN, **keys})
    assert migrated.documents["train"][option] == value
    load(verbs.config_class("train"), migrated.documents["train"])


@pytest.mark.parametrize(
    ("keys", "key", "outcome", "said"),
    [
        ({"lora_rnk": 8}, "lora_rnk", "wrong", "Did you mean 'lora_rank'?"),
        ({"use_galore": True}, "use_galore", "not supported", "AdamW"),
        ({"finetuning_type": "oft"}, "finetuning_type", "not supported", "oft is no method"),
        ({"quantization_bit": 8}, "quantization_bit", "not supported", "4 bits"),
        ({"quantization_bit": 4, "finetuning_type": "full"}, "quantization_bit", "wrong", "finetuning_type: lora"),
        ({"quantization_bit": 4, "pissa_init": True}, "pissa_init", "wrong", "four bits"),
        ({"freeze_trainable_layers": -2, "finetuning_type": "freeze"}, "freeze_trainable_layers", "not supported", "last"),
        ({"train_on_prompt": True}, "train_on_prompt", "not supported", "assistant"),
        ({"resize_vocab": True}, "resize_vocab", "not supported", "vocabulary"),
        ({"lr_scheduler_type": "polynomial"}, "lr_scheduler_type", "not supported", "cosine"),
        ({"optim": "lion_8bit"}, "optim", "not supported", "AdamW"),
        ({"dataset": "lampz"}, "dataset", "wrong", "Did you mean 'lamps'?"),
        ({"dataset": "online"}, "online.hf_hub_url", "not supported", "Hugging Face"),
        ({"dataset": "pairs"}, "pairs.ranking", "wrong", "without ranking"),
        ({"dataset": "unread"}, "unread.rows", "wrong", "formatting: sharegpt"),
        ({"dataset": "typo"}, "typo.colums", "wrong", "'columns'"),
        ({"dataset": "pictures"}, "pictures.columns", "not supported", "pictures"),
        ({"interleave_probs": "0.5,0.5", "mix_strategy": "interleave_under"}, "interleave_probs", "not supported", "num_samples"),
        ({"learning_rate": "${rate}"}, "learning_rate", None, "must be a number"),
        ({"deepspeed": "mine.json"}, "deepspeed", "not supported", "is not found"),
        ({"run_name": "${oc.env:NAME}"}, "run_name", "not supported", "Write the value"),
        ({"adapter_name_or_path": "a,b"}, "adapter_name_or_path", "not supported", "over each other"),
        ({"resume_from_checkpoint": "saves/checkpoint-5"}, "resume_from_checkpoint", "not supported", "no run"),
    ],
)  # fmt: skip
def test_what_would_change_the_result_is_lost_aloud(keys, key, outcome, said):
    if outcome is None:
        with pytest.raises(TunesmithError, match=said):
            migrate(**{**TRAIN, **keys})
        return
    found = verdict(migrate(**{**TRAIN, **keys}), key)
    assert found.lost
    assert (found.outcome, said in found.text) == (outcome, True), found


@pytest.mark.parametrize(
    ("keys", "key", "outcome", "said"),
    [
        ({"gradient_checkpointing": False}, "gradient_checkpointing", "wrong", "disable_gradient_checkpointing"),
        ({"lora_rank": 4, "finetuning_type": "full"}, "lora_rank", "no effect", "finetuning_type: lora"),
        ({"pref_beta": 0.4}, "pref_beta", "no effect", "stage: dpo or kto"),
        ({"galore_rank": 4}, "galore_rank", "no effect", "use_galore"),
        ({"trust_remote_code": True}, "trust_remote_code", "no effect", "never run"),
        ({"template": "alpaca"}, "template", "not supported", "beside the model"),
        ({"packing": True}, "packing", "not supported", "see each other without neat_packing"),
        ({"hf_hub_token": "hf_abc"}, "hf_hub_token", "no effect", "HF_TOKEN"),
        ({"deepspeed": "ds_z3_config.json"}, "deepspeed", "became", "--devices.processes N"),
        ({"dataset": "who"}, "who.rows", "wrong", "{{author}}, {{name}} stand in 4 of 4 rows"),
        ({"dataset": "talks_mistyped"}, "talks_mistyped.format", "wrong", "formatting is meant"),
        ({"dataset": "both"}, "both.hf_hub_url", "no effect", "would take hf_hub_url first"),
        ({"dataset": "lines"}, "lines.formatting", "became", "detailed thinking off"),
    ],
)
def test_what_the_original_does_wrong_is_said_and_loses_nothing(keys, key, outcome, said):
    migrated = migrate(**{**TRAIN, **keys})
    found = verdict(migrated, key)
    assert (found.outcome, said in found.text) == (outcome, True), found
    assert not migrated.lost


def test_secrets_are_not_shown():
    migrated = migrate(**TRAIN, hf_hub_token="hf_abc", use_auth_token="hf_def", swanlab_api_key="key")
    assert "hf_abc" not in str(migrated.verdicts)
    assert "hf_def" not in str(migrated.verdicts)
    assert verdict(migrated, "swanlab_api_key").value == "***"


def test_a_reward_model_with_a_head_of_theirs_is_named(tmp_path):
    (tmp_path / "value_head.safetensors").write_bytes(b"")
    found = verdict(migrate(**{**ASKS["ppo"], "reward_model": str(tmp_path)}), "reward_model")
    assert found.lost
    assert "stage: rm" in found.text


def test_the_base_of_an_adapter_is_the_one_it_names(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/other"}))
    migrated = migrate(model_name_or_path="a/b", adapter_name_or_path=str(tmp_path))
    assert migrated.documents["chat"]["model"] == str(tmp_path)
    assert "someone/other" in verdict(migrated, "model_name_or_path").text


def test_one_file_can_train_and_ask():
    migrated = migrate(**TRAIN, val_size=0.25, do_predict=True, predict_with_generate=True, top_p=0.9)
    assert list(migrated.documents) == ["train", "evaluate"]
    asked = migrated.documents["evaluate"]
    assert (asked["model"], asked["data"]) == ("o", {"path": ["o"]})
    assert asked["sampling"] == {"temperature": 0.95, "top_p": 0.9, "max_tokens": 1024}


def test_files_are_told_apart():
    assert is_llamafactory({"model_name_or_path": "x"})
    assert is_llamafactory({"stage": "sft", "finetuning_type": "lora"})
    assert not is_llamafactory({"model": "x", "dataset": "rows.jsonl", "seed": 1})
    for document, said in (
        ({"top.model_name": "x"}, "LLaMA Board"),
        ({"model": "x", "peft_config": {}}, "v1"),
        ({"model": "x"}, "no file of LLaMA-Factory"),
        ({"stage": "sft", "do_train": True}, "model_name_or_path: is required"),
    ):
        with pytest.raises(UsageError, match=said):
            migrate(**document)


@pytest.mark.parametrize(
    ("stage", "entry", "said"),
    [
        ("sft", {"columns": ["instruction"]}, "mine.columns: must be an object of names. Got"),
        ("sft", {"columns": {"prompt": 1}}, "mine.columns: must be an object of names. Got"),
        ("sft", {"tags": "from"}, "mine.tags: must be an object of words. Got from."),
        ("sft", {"num_samples": "many"}, "mine.num_samples: must be a whole number above 0. Got many."),
        ("sft", {"num_samples": -3}, "mine.num_samples: must be a whole number above 0. Got -3."),
        ("sft", {"ranking": "false"}, "mine.ranking: must be true or false, without quotes. Got false."),
        ("sft", {"file_name": ["lamps.json"]}, "mine.file_name: must be the name of a file or folder"),
    ],
)
def test_fields_of_another_type_are_refused_in_one_line(tmp_path, stage, entry, said):
    (tmp_path / "lamps.json").write_text('[{"instruction": "On?", "output": "Yes."}]', encoding="utf-8")
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "lamps.json", **entry}}))
    with pytest.raises(DataError) as caught:
        migrate(**{**TRAIN, "stage": stage, "dataset": "mine", "dataset_dir": str(tmp_path)})
    assert said in str(caught.value)


def test_pairs_whose_answers_are_not_named_are_lost(tmp_path):
    pair = {"instruction": "On?", "input": "", "chosen": "Yes.", "rejected": "Who knows."}
    (tmp_path / "pairs.json").write_text(json.dumps([pair]), encoding="utf-8")
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "pairs.json", "ranking": True}}))
    migrated = migrate(**{**TRAIN, "stage": "dpo", "dataset": "mine", "dataset_dir": str(tmp_path)})
    assert "rows have no chosen but instruction" in verdict(migrated, "mine.rows").text
    assert verdict(migrated, "mine.rows").lost


def test_a_file_that_is_missing_is_what_is_said_first(tmp_path):
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "gone.json"}}))
    migrated = migrate(**{**TRAIN, "dataset": "mine", "dataset_dir": str(tmp_path)})
    assert "mine.file_name: no such file" in migrated.lost[0].text


@pytest.mark.parametrize(("word", "wanted"), [("yes", True), ("On", True), ("no", False), ("OFF", False)])
def test_words_of_yaml_1_1_are_true_and_false(word, wanted):
    migrated = migrate(**TRAIN, use_dora=word, use_galore="no", train_on_prompt="off")
    assert migrated.documents["train"]["method"].get("dora", False) is wanted
    assert not migrated.lost


def test_steps_of_an_epoch_know_processes_and_leave_documents_uncounted():
    epoch = {"save_strategy": "epoch", "per_device_train_batch_size": 1}
    alone = migrate(**TRAIN, **epoch).documents["train"]["save"]["every_steps"]
    three = migrate(**TRAIN, **epoch, ray_num_workers=3).documents["train"]["save"]["every_steps"]
    assert three == -(-alone // 3) < alone
    assert "save" not in migrate(**ASKS["pretrain"], **epoch).documents["train"]
