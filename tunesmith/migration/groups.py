"""The keys of LLaMA-Factory that have no counterpart: why, and what to do where that matters.

A group gives every key with the value that LLaMA-Factory takes without it, so that a file which only repeats a default is
not blamed for it. Where `lost` is set, the result would be another one and the file is not run without the person's word.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from tunesmith.core.config import parse_yaml


@dataclass(frozen=True, slots=True)
class Group:
    """Keys with one reason."""

    why: str
    keys: str
    """`name=default` each; without `=` the default is null."""
    do: str = ""
    lost: bool = False
    """Whether what comes out would differ from what the file asks for."""
    missed: bool = False
    """Whether something is asked for that Tunesmith does not do, though the weights come out the same."""
    switch: str = ""
    """The key that turns the others on; while it is off LLaMA-Factory reads none of them."""

    def named(self) -> Iterator[tuple[str, Any]]:
        """(key, LLaMA-Factory's default) of every key."""
        for word in self.keys.split():
            name, _, default = word.partition("=")
            yield name, parse_yaml(default, name) if default else None


# fmt: off
GROUPS: tuple[Group, ...] = (
    # the model
    Group("remote code is never run; a model that needs it is refused when it is loaded", "trust_remote_code=false"),
    Group(
        "fast tokenizers only, weights read without a copy, transformers' own attention kernels: the same numbers",
        "use_fast_tokenizer=true low_cpu_mem_usage=true flash_attn=auto use_unsloth=false use_unsloth_gc=false "
        "enable_liger_kernel=false use_v1_kernels=false use_reentrant_gc=true gradient_checkpointing_kwargs "
        "activation_checkpointing_kwargs liger_kernel_config offload_folder=offload use_kv_cache=true print_param_status=false tf32 "
        "torch_compile=false torch_compile_backend torch_compile_mode torchdynamo torch_empty_cache_steps jit_mode_eval=false "
        "use_ipex=false",
    ),
    Group("what is trained is kept in fp32 anyway", "upcast_layernorm=false upcast_lmhead_output=false"),
    Group("files lie where HF_HOME and TUNESMITH_CACHE say", "cache_dir"),
    Group(
        "a secret does not belong into a config", "hf_hub_token ms_hub_token om_hub_token hub_token push_to_hub_token",
        do="Set HF_TOKEN in the environment",
    ),
    Group(
        "the newest revision is taken", "model_revision=main adapter_folder", lost=True,
        do="Download the revision or folder you mean and name it in model_name_or_path or adapter_name_or_path",
    ),
    Group(
        "the vocabulary of the model is not changed",
        "resize_vocab=false split_special_tokens=false add_tokens add_special_tokens new_special_tokens_config "
        "init_special_tokens=noise_init",
        lost=True, do="Add the tokens to the model folder first",
    ),
    Group(
        "the model is trained as its config.json describes it",
        "rope_scaling shift_attn=false mixture_of_depths moe_aux_loss_coef train_from_scratch=false use_v2=false",
        lost=True, do="Write it into the model's config.json, or leave it out",
    ),
    Group("a device map is chosen by what fits", "quantization_device_map"),
    # pictures, films, sound
    Group(
        "text only: pictures, films and sound are not trained",
        "media_dir image_max_pixels=589824 image_min_pixels=1024 image_do_pan_and_scan=false crop_to_patches=false "
        "video_max_pixels=65536 video_min_pixels=256 video_fps=2.0 video_maxlen=128 use_audio_in_video=false "
        "audio_sampling_rate=16000 use_mllm=false visual_inputs=false freeze_vision_tower=true freeze_multi_modal_projector=true",
    ),
    Group("the language model is what is trained", "freeze_language_model=false", lost=True, do="Leave it out"),
    # export
    Group("safetensors are written in parts where they are large, merged on this machine in fp32", "export_size=5 export_device=cpu"),
    Group("weights that can run code when they are loaded are not written", "export_legacy_format=false", missed=True),
    Group("nothing is uploaded", "export_hub_model_id push_to_hub=false hub_model_id hub_strategy=every_save hub_private_repo "
          "hub_always_push=false hub_revision push_to_hub_model_id push_to_hub_organization", missed=True,
          do="Upload the package with the hub's own client"),
    Group("belongs to export_quantization_bit", "export_quantization_dataset export_quantization_nsamples=128 "
          "export_quantization_maxlen=1024", switch="export_quantization_bit"),
    # engines of others
    Group("belongs to vLLM, SGLang or KTransformers", "vllm_maxlen=4096 vllm_gpu_util=0.7 vllm_enforce_eager=false "
          "vllm_max_lora_rank=32 vllm_config sglang_maxlen=4096 sglang_mem_fraction=0.7 sglang_tp_size=-1 sglang_config "
          "sglang_lora_backend=triton kt_weight_path kt_expert_checkpoint_path kt_use_lora_experts kt_lora_expert_num "
          "kt_lora_expert_intermediate_size kt_maxlen=4096 kt_use_cuda_graph=true kt_mode=normal kt_force_think=false "
          "kt_optimize_rule cpu_infer=32 chunk_size=8192 mode=normal"),
    Group("KTransformers is no method of Tunesmith", "use_kt=false", lost=True, do="Leave it out, or plan with qlora"),
    # data
    Group("rows are prepared once into the run and mapped into memory",
          "overwrite_cache=false preprocessing_batch_size=1000 preprocessing_num_workers data_shared_file_system=false "
          "buffer_size=16384 dataloader_num_workers=0 dataloader_pin_memory=true dataloader_persistent_workers=false "
          "dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order=true remove_unused_columns=true "
          "label_names accelerator_config dispatch_batches split_batches reserved_label_len=1 use_legacy_prediction_loop=false"),
    Group("only the assistant's words are trained", "train_on_prompt=false", lost=True,
          do="Leave it out, or train the rows as plain text (objective pretrain)"),
    Group("padding is never trained", "ignore_pad_token_for_loss=true", lost=True, do="Leave it out"),
    Group("a step may be smaller than the others at the end of an epoch; no row is left out", "dataloader_drop_last=false",
          missed=True),
    Group("rows are shuffled by the seed", "disable_shuffling=false data_seed", missed=True),
    Group("lengths are known; group_by_length decides whether they order the rows", "length_column_name=length "
          "train_sampling_strategy=random sortish_sampler=false"),
    Group("tools and thinking are rendered by the model's own chat template", "tool_format enable_thinking=true "
          "preserve_thinking=false", missed=True, do="Look at rows with: tunesmith prepare --show 2"),
    Group("a text before every prompt is not added", "source_prefix", lost=True, do="Use default_system, or write it into the rows"),
    # methods
    Group("orthogonal fine-tuning is no method of Tunesmith", "module_dropout=0.0 oft_rank=0 oft_block_size=32 oft_target=all"),
    Group("embeddings under LoRA learn at the rate of the other matrices", "loraplus_lr_embedding=1e-6"),
    Group("block expansion is no method of Tunesmith", "use_llama_pro=false", lost=True, do="Take freeze or lora"),
    Group("the number of layers is read from the model", "num_hidden_layers"),
    # objectives
    Group("this loss is no objective of Tunesmith", "use_dft_loss=false use_asft_loss=false use_eaft_loss=false", lost=True,
          do="Leave it out for plain cross entropy"),
    Group("belongs to a loss that is not turned on", "asft_alpha=0.1 eaft_alpha=1.0"),
    Group("the reference is the model that is trained, before training", "ref_model_adapters ref_model_quantization_bit", lost=True,
          do="Train on top of that model: model_name_or_path, adapter_name_or_path"),
    Group("the reward model is read as its run or folder stands", "reward_model_adapters reward_model_quantization_bit", lost=True,
          do="Name the run or folder in reward_model"),
    # optimizers
    Group("this optimizer is not there", "use_galore=false use_apollo=false use_badam=false use_adam_mini=false adafactor=false",
          lost=True, do="Leave it out for AdamW; lora or qlora save more memory"),
    Group("belongs to GaLore", "galore_target=all galore_rank=16 galore_update_interval=200 galore_scale=2.0 galore_proj_type=std "
          "galore_layerwise=false", switch="use_galore"),
    Group("belongs to APOLLO", "apollo_target=all apollo_rank=16 apollo_update_interval=200 apollo_scale=32.0 apollo_proj=random "
          "apollo_proj_type=std apollo_scale_type=channel apollo_layerwise=false apollo_scale_front=false", switch="use_apollo"),
    Group("belongs to BAdam", "badam_mode=layer badam_start_block badam_switch_mode=ascending badam_switch_interval=50 "
          "badam_update_ratio=0.05 badam_mask_mode=adjacent badam_verbose=0", switch="use_badam"),
    Group("the optimizer and the schedule take the options they have in Tunesmith", "optim_args optim_target_modules "
          "lr_scheduler_kwargs", lost=True, do="Leave it out"),
    # logging and tracking
    Group("every step is in events.jsonl, the curves are in loss.png", "logging_steps=500 logging_strategy=steps logging_first_step=false "
          "logging_dir log_level=passive log_level_replica=warning log_on_each_node=true logging_nan_inf_filter=true disable_tqdm "
          "plot_loss=false include_effective_tokens_per_second=false include_tokens_per_second=false include_num_input_tokens_seen=no "
          "skip_memory_metrics=true save_on_each_node=false average_tokens_across_devices=true debug"),
    Group("the run folder names the run", "run_name project=huggingface trackio_space_id trackio_bucket_id trackio_static_space_id"),
    Group("SwanLab is told by its own environment variables (SWANLAB_MODE, SWANLAB_API_KEY)", "swanlab_project=llamafactory swanlab_workspace swanlab_run_name swanlab_mode=cloud swanlab_api_key "
          "swanlab_logdir swanlab_lark_webhook_url swanlab_lark_secret", switch="use_swanlab"),
    Group("no profile is written", "enable_torch_profiler=false profiler_output_dir profiler_wait_steps=1 profiler_warmup_steps=1 "
          "profiler_active_steps=1 profiler_repeat=1 profiler_record_shapes=true profiler_profile_memory=true "
          "profiler_with_stack=true profile_modules", missed=True),
    # evaluation and saving
    Group("held-out rows are scored in batches of batch.rows, before the first step too", "per_device_eval_batch_size=8 eval_on_start=false "
          "eval_accumulation_steps eval_do_concat_batches=true eval_use_gather_object=false batch_eval_metrics=false "
          "prediction_loss_only=false include_for_metrics include_inputs_for_metrics=false bf16_full_eval=false "
          "fp16_full_eval=false greater_is_better"),
    Group("held-out rows give one loss, from the first evaluation on", "eval_on_each_dataset=false eval_delay=0 compute_accuracy=false",
          missed=True, do="Evaluate the sets one by one with tunesmith evaluate"),
    Group("checkpoints are safetensors and always hold what resuming needs", "save_only_model=false save_safetensors=true "
          "enable_jit_checkpoint=false ignore_data_skip=false restore_callback_states_from_checkpoint=false full_determinism=false"),
    Group("the memory plan refuses a batch that does not fit, and says which one does", "auto_find_batch_size=false"),
    # generation
    Group("not a way in which Tunesmith's engines choose words", "top_k=50 num_beams=1 repetition_penalty=1.0 length_penalty=1.0 "
          "eval_num_beams generation_num_beams generation_config", missed=True, do="Leave it out"),
    Group("special tokens are never part of an answer", "skip_special_tokens=true generation_max_length"),
    # processes
    Group("tensor and context parallelism are not there", "parallelism_config", lost=True, do="Take deepspeed, or leave it out"),
    Group("belongs to training in several processes", "fsdp_config fsdp_min_num_params=0 fsdp_transformer_layer_cls_to_wrap ddp_timeout=1800 ddp_find_unused_parameters ddp_bucket_cap_mb "
          "ddp_broadcast_buffers ddp_static_graph ddp_backend local_rank=-1 xpu_backend ray_init_kwargs ray_run_name ray_storage_path "
          "ray_storage_filesystem ray_scope=last resources_per_worker placement_strategy master_addr master_port tpu_num_cores "
          "tpu_metrics_debug=false mp_parameters sharded_ddp half_precision_backend=auto fp16_opt_level=O1 fp16_backend=auto"),
    Group("Megatron and HyperParallel are not there", "use_mca=false use_megatron_bridge=false use_hyper_parallel=false", lost=True,
          do="Leave it out"),
    Group("belongs to Megatron or HyperParallel", "hyper_parallel_args hyper_parallel_cp_size tensor_model_parallel_size=1 "
          "pipeline_model_parallel_size=1 expert_model_parallel_size=1 context_parallel_size=1 virtual_pipeline_model_parallel_size "
          "sequence_parallel=false recompute_granularity recompute_method recompute_num_layers "
          "account_for_embedding_in_pipeline_split account_for_loss_in_pipeline_split bias_activation_fusion apply_rope_fusion "
          "masked_softmax_fusion cross_entropy_loss_fusion moe_grouped_gemm moe_token_dispatcher_type calculate_per_token_loss "
          "use_distributed_optimizer=true overlap_param_gather=true overlap_grad_reduce=true use_packed_sequences=false "
          "mixed_precision=bf16_mixed megatron_pretrained_checkpoint export_hf_on_finish=false extra_config"),
    Group("trained in bf16 or fp32", "fp8=false", lost=True, do="Leave it out, or take bf16: true"),
    Group("belongs to fp8", "fp8_backend=auto fp8_enable_fsdp_float8_all_gather=false", switch="fp8"),
    Group("the device is chosen by what the machine has", "use_cpu=false use_mps_device=false past_index=-1", missed=True,
          do="Hide the GPU with CUDA_VISIBLE_DEVICES= to train on the processor"),
    # the evaluation verb of LLaMA-Factory, which its newer versions refuse to run
    Group("its own newer versions end with an error here", "task task_dir=evaluation batch_size=4 lang=en n_shot=5 save_dir "
          "download_mode=reuse_dataset_if_exists", missed=True, do="Use tunesmith evaluate with rows of your own"),
)
# fmt: on


@cache
def grouped() -> dict[str, tuple[Group, Any]]:
    """Key -> its group and LLaMA-Factory's default."""
    return {name: (group, default) for group in GROUPS for name, default in group.named()}
