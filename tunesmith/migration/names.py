"""The names a LLaMA-Factory file may hold: those that have a counterpart here, and what older years called them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunesmith.core.config import parse_yaml


@dataclass(frozen=True, slots=True)
class Name:
    """A key that has a counterpart: what LLaMA-Factory takes without it, ours, and when it is read at all."""

    key: str
    default: Any
    target: str
    """Dotted option of ours, or what takes its place."""
    needs: str
    """Without this in the file (a job, a method, a stage) LLaMA-Factory does not look at the key; empty: always."""


_MAPPED = """
model_name_or_path              null         model                          -
adapter_name_or_path            null         model                          -
create_new_adapter              false        model                          adapter_name_or_path
do_train                        false        verb_train                     -
do_eval                         false        verb_evaluate                  -
do_predict                      false        verb_evaluate                  -
predict_with_generate           false        verb_evaluate                  -
stage                           sft          objective.kind                 -
finetuning_type                 lora         method.kind                    -
output_dir                      null         --out                          -
overwrite_output_dir            false        --out                          -
resume_from_checkpoint          null         --resume                       train
quantization_bit                null         method.kind                    -
quantization_method             bnb          method.kind                    quantization_bit
quantization_type               nf4          method.kind                    quantization_bit
double_quantization             true         method.double_quantization     quantization_bit
lora_rank                       8            method.rank                    lora
lora_alpha                      null         method.alpha                   lora
lora_dropout                    0.0          method.dropout                 lora
lora_target                     all          method.targets                 lora
additional_target               null         method.full_modules            lora
loraplus_lr_ratio               null         method.plus_ratio              lora
use_rslora                      false        method.rslora                  lora
use_dora                        false        method.dora                    lora
pissa_init                      false        method.init                    lora
pissa_iter                      16           method.init                    pissa_init
pissa_convert                   false        method.init                    pissa_init
freeze_trainable_layers         2            method.layers                  freeze
freeze_trainable_modules        all          method.modules                 freeze
freeze_extra_modules            null         method.extra                   freeze
pre_seq_len                     16           method.tokens                  p_tuning
prefix_projection               false        method.projection              p_tuning
pref_beta                       0.1          objective.beta                 dpo_or_kto
pref_loss                       sigmoid      objective.variant              dpo
pref_ftx                        0.0          objective.sft_weight           dpo_or_kto
pref_bco_weight                 0.0          -                              dpo
dpo_label_smoothing             0.0          objective.label_smoothing      dpo
simpo_gamma                     0.5          objective.margin               simpo
ld_alpha                        null         -                              dpo
ref_model                       null         objective                      dpo_or_kto_or_ppo
kto_chosen_weight               1.0          objective.good_weight          kto
kto_rejected_weight             1.0          objective.bad_weight           kto
reward_model                    null         objective.reward               ppo
reward_model_type               lora         objective.reward               ppo
ppo_epochs                      4            objective.epochs               ppo
ppo_buffer_size                 1            batch.accumulate               ppo
ppo_target                      6.0          objective.kl_target            ppo
ppo_score_norm                  false        objective                      ppo
ppo_whiten_rewards              false        objective                      ppo
dataset                         null         dataset.path                   -
eval_dataset                    null         dataset.held_out               -
dataset_dir                     data         dataset.path                   -
template                        null         model                          -
cutoff_len                      2048         cutoff                         train
max_samples                     null         dataset.path                   -
mix_strategy                    concat       dataset.path                   train
interleave_probs                null         dataset.path                   train
mask_history                    false        dataset.path                   train
default_system                  null         dataset.path                   -
val_size                        0.0          evaluation.share               -
packing                         null         batch.rows                     train
neat_packing                    false        batch.rows                     train
streaming                       false        dataset.path                   train
tokenized_path                  null         dataset.path                   -
per_device_train_batch_size     8            batch.rows                     train
gradient_accumulation_steps     1            batch.accumulate               train
group_by_length                 false        batch.group_by_length          train
learning_rate                   5e-5         optimizer.learning_rate        train
num_train_epochs                3.0          optimizer.epochs               train
max_steps                       -1           optimizer.steps                train
lr_scheduler_type               linear       optimizer.schedule             train
warmup_ratio                    0.0          optimizer.warmup               train
warmup_steps                    0            optimizer.warmup               train
optim                           adamw_torch  optimizer.kind                 train
use_muon                        false        optimizer.kind                 train
weight_decay                    0.0          optimizer.weight_decay         train
adam_beta1                      0.9          optimizer.betas                train
adam_beta2                      0.999        optimizer.betas                train
adam_epsilon                    1e-8         optimizer.epsilon              train
max_grad_norm                   1.0          optimizer.max_gradient_norm    train
label_smoothing_factor          0.0          objective.label_smoothing      train
neftune_noise_alpha             null         objective.neftune_alpha        train
bf16                            false        precision                      train
fp16                            false        precision                      train
pure_bf16                       false        precision                      train
disable_gradient_checkpointing  false        memory.checkpointing           train
gradient_checkpointing          null         memory.checkpointing           train
seed                            42           seed                           -
eval_strategy                   no           evaluation.every_steps         train
eval_steps                      null         evaluation.every_steps         train
load_best_model_at_end          false        evaluation.keep_best           train
metric_for_best_model           null         evaluation.keep_best           train
early_stopping_steps            null         evaluation.patience            train
save_strategy                   steps        save.every_steps               train
save_steps                      500          save.every_steps               train
save_total_limit                null         save.keep                      train
deepspeed                       null         devices.stage                  train
fsdp                            null         devices.kind                   train
ray_num_workers                 1            devices.processes              train
report_to                       none         track                          train
use_swanlab                     false        track                          train
do_sample                       true         sampling.temperature           ask
temperature                     0.95         sampling.temperature           ask
top_p                           0.7          sampling.top_p                 ask
max_new_tokens                  1024         sampling.max_tokens            ask
max_length                      1024         sampling.max_tokens            ask
infer_backend                   huggingface  engine.kind                    talk
infer_dtype                     auto         engine.precision               talk_or_export
export_dir                      null         --out                          -
export_quantization_bit         null         gguf                           export
"""


def _table() -> dict[str, Name]:
    rows = (line.split() for line in _MAPPED.strip().splitlines())
    return {
        key: Name(key, parse_yaml(default, key), target.replace("verb_", "verb "), "" if needs == "-" else needs)
        for key, default, target, needs in rows
    }


MAPPED = _table()

RENAMED: dict[str, str] = {
    "dpo_beta": "pref_beta", "orpo_beta": "pref_beta", "kto_beta": "pref_beta", "dpo_loss": "pref_loss",
    "dpo_ftx": "pref_ftx", "kto_ftx": "pref_ftx", "kto_desirable_weight": "kto_chosen_weight",
    "kto_undesirable_weight": "kto_rejected_weight", "dpo_ref_model": "ref_model",
    "name_module_trainable": "freeze_trainable_modules", "num_layer_trainable": "freeze_trainable_layers",
    "lora_lr_ratio": "loraplus_lr_ratio", "lora_bf16_mode": "pure_bf16", "neft_alpha": "neftune_noise_alpha",
    "use_adammini": "use_adam_mini", "badam_switch_block_every": "badam_switch_interval", "ppo_logger": "report_to",
    "train_mm_proj_only": "freeze_language_model", "tune_mm_proj": "freeze_multi_modal_projector",
    "cache_path": "tokenized_path", "sft_packing": "packing", "efficient_packing": "neat_packing",
    "max_source_length": "cutoff_len", "max_target_length": "cutoff_len", "train_last_turn_only": "mask_history",
    "dev_ratio": "val_size", "image_dir": "media_dir", "prompt_template": "template", "system_prompt": "default_system",
    "checkpoint_dir": "adapter_name_or_path", "resume_lora_training": "create_new_adapter",
    "use_auth_token": "hf_hub_token", "hf_auth_token": "hf_hub_token", "new_special_tokens": "add_special_tokens",
    "image_resolution": "image_max_pixels", "video_resolution": "video_max_pixels",
    "use_liger_kernel": "enable_liger_kernel", "use_cache": "use_kv_cache", "vllm_dtype": "infer_dtype",
    "evaluation_strategy": "eval_strategy", "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size", "activation_checkpointing": "gradient_checkpointing",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
}  # fmt: skip
"""What older years called a key -> its name today."""

ASKED = {
    "train": "do_train: true", "ask": "stage: ppo, do_predict, or in a file for chat or api", "talk": "a file for chat or api",
    "talk_or_export": "a file for chat, api or export", "export": "export_dir", "lora": "training with finetuning_type: lora",
    "freeze": "training with finetuning_type: freeze", "dpo": "training with stage: dpo", "kto": "training with stage: kto",
    "ppo": "training with stage: ppo", "dpo_or_kto": "training with stage: dpo or kto", "simpo": "pref_loss: simpo",
    "dpo_or_kto_or_ppo": "training with stage: dpo, kto or ppo", "quantization_bit": "training with quantization_bit",
    "pissa_init": "pissa_init: true", "p_tuning": "training with finetuning_type: p_tuning", "adapter_name_or_path": "training with adapter_name_or_path",
}  # fmt: skip
"""What a key needs to be read, in the words of a LLaMA-Factory file."""
