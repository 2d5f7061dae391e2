"""Arguments of TRL's GRPO script that have no counterpart here, by the reason."""

from __future__ import annotations

from saerl_lightning.migration.arguments import Argument

REASONS: dict[str, dict[str, object]] = {
    "not here, because code from a model may only run if you say so: --model.policy.trust_remote_code true": {
        "trust_remote_code": False,
    },
    "not here, because a folder names one version: download that revision and name its folder in model.policy.path": {
        "model_revision": "main",
    },
    "write what you need of it in model.policy (dtype, attention); the rest has no setting": {
        "model_init_kwargs": None
    },
    "not here, because mixtures of experts are not trained with a loss of their routers": {
        "router_aux_loss_coef": None
    },
    "not here, because dropout is always off: the policy that is trained is the one that sampled": {
        "disable_dropout": False,
    },
    "not here, because log-probabilities are always computed in float32 from the logits on": {
        "cast_lm_head_to_fp32": False
    },
    "not here, because the sampler must have the policy's own probabilities; top_p and top_k are model.sampling's": {
        "min_p": None,
        "repetition_penalty": 1.0,
        "vllm_structured_outputs_regex": None,
    },
    "write what you need of it in model.sampling (stop, seed)": {"generation_kwargs": None},
    "not here, because memory is model.micro_tokens (tokens at once), which changes no gradient": {
        "pad_to_multiple_of": "auto",
        "auto_find_batch_size": False,
        "torch_empty_cache_steps": None,
        "train_sampling_strategy": "random",
        "length_column_name": "length",
    },
    "not here, because engines need none: HFEngine decodes with fused weights, VLLMEngine runs in the trainer's process": {
        "cache_implementation": None,
        "use_cache": False,
        "use_transformers_continuous_batching": False,
        "transformers_continuous_batching_config": None,
        "use_transformers_paged": False,
        "vllm_model_impl": "vllm",
        "vllm_server_timeout": 240.0,
        "vllm_group_port": 51216,
    },
    "not here, because the context is data.chat.max_prompt_tokens + model.sampling.max_tokens": {
        "vllm_max_model_length": None,
    },
    "write --model.engine ServerEngine and its server.tensor_parallel: VLLMEngine runs on one GPU": {
        "vllm_tensor_parallel_size": 1,
    },
    "not here, because engines get whole weights, a tensor at a time": {"ds3_gather_for_generation": True},
    "write model.objective.correction.cap: this name is TRL's older one for vllm_importance_sampling_clip_max": {
        "vllm_importance_sampling_cap": None,
    },
    "not here, because the loss it belongs to is not": {
        "sapo_temperature_neg": 1.05,
        "sapo_temperature_pos": 1.0,
        "vespo_k_pos": 2.0,
        "vespo_lambda_pos": 3.0,
        "vespo_k_neg": 3.0,
        "vespo_lambda_neg": 2.0,
    },
    "not here, because rewards are summed by weight before advantages": {
        "multi_objective_aggregation": "sum_then_normalize",
    },
    "not here, because the reference of the KL stays the initial policy": {
        "sync_ref_model": False,
        "ref_model_mixup_alpha": 0.6,
        "ref_model_sync_steps": 512,
    },
    "not here, because the entropy bonus is constant: model.objective.entropy.bonus": {
        "use_adaptive_entropy": False,
        "entropy_coef_min": 0.0,
        "entropy_coef_max": 1.0,
        "entropy_coef_delta": 0.005,
        "entropy_target": 0.2,
    },
    "not here, because completions call no tools": {"max_tool_calling_iterations": None},
    "not here, because old weights are handled by the clip and by model.objective.correction": {
        "off_policy_mask_threshold": None,
    },
    "not here, because completions are a table of every run (CompletionTable)": {
        "log_completions": False,
        "log_multimodal": True,
        "num_completions_to_print": None,
        "log_unique_prompts": False,
        "log_completions_hub_repo": None,
    },
    "write it in model.optimizer or model.lr_scheduler, which take classes of torch with their arguments": {
        "lr_scheduler_kwargs": None,
        "optim_args": None,
        "optim_target_modules": None,
    },
    "not here, because a loss is always divided by the tokens or rows of the whole step, on all processes": {
        "average_tokens_across_devices": True,
    },
    "not here, because it belongs to other losses than those of policy gradients": {
        "label_smoothing_factor": 0.0,
        "neftune_noise_alpha": None,
        "prediction_loss_only": False,
        "label_names": None,
        "include_for_metrics": [],
        "batch_eval_metrics": False,
    },
    "write --trainer.precision, which also holds in evaluation": {
        "bf16_full_eval": False,
        "fp16_full_eval": False,
        "tf32": None,
    },
    "not here, because model.shortcuts are the faster computations that change no gradient": {
        "torch_compile": False,
        "torch_compile_backend": None,
        "torch_compile_mode": None,
        "use_liger_kernel": False,
        "liger_kernel_config": None,
        "gradient_checkpointing_kwargs": None,
    },
    "not here, because loggers are Lightning's: --trainer.logger and --trainer.log_every_n_steps": {
        "logging_strategy": "steps",
        "logging_first_step": False,
        "log_on_each_node": True,
        "logging_nan_inf_filter": True,
        "include_num_input_tokens_seen": "no",
        "log_level": "passive",
        "log_level_replica": "warning",
        "disable_tqdm": None,
        "trackio_space_id": None,
        "trackio_bucket_id": None,
        "trackio_static_space_id": None,
    },
    "not here, because validation is data.val_batch_size, trainer.val_check_interval and the callback ValidateAtStart": {
        "eval_delay": 0,
        "per_device_eval_batch_size": 8,
        "eval_on_start": False,
        "eval_do_concat_batches": True,
        "eval_use_gather_object": False,
        "eval_accumulation_steps": None,
        "do_eval": False,
    },
    "write checkpoint.save_top_k, checkpoint.monitor and checkpoint.mode; the last checkpoint is always kept, whole": {
        "save_only_model": False,
        "save_on_each_node": False,
        "save_total_limit": None,
        "enable_jit_checkpoint": False,
        "load_best_model_at_end": False,
        "metric_for_best_model": None,
        "greater_is_better": None,
    },
    "not here, because a run uploads nothing: the verb export writes a folder that the hub takes": {
        "push_to_hub": False,
        "hub_token": None,
        "hub_private_repo": None,
        "hub_model_id": None,
        "hub_strategy": "every_save",
        "hub_always_push": False,
        "hub_revision": None,
    },
    "write --ckpt_path last behind the same command: it begins a run, and goes on with it each time it is given again": {
        "resume_from_checkpoint": None,
    },
    "not here, because a run resumes exactly, with --ckpt_path of a run of its own": {
        "ignore_data_skip": False,
        "restore_callback_states_from_checkpoint": False,
    },
    "write --trainer.deterministic true": {"full_determinism": False},
    "write --trainer.accelerator cpu": {"use_cpu": False},
    "not here, because prompts are served in the order of the plan, from memory": {
        "dataloader_drop_last": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": True,
        "dataloader_persistent_workers": False,
        "dataloader_prefetch_factor": None,
        "dataloader_multiprocessing_context": None,
        "dataloader_in_order": True,
        "dataset_streaming": False,
        "streaming": False,
    },
    "not here, because all columns are kept for rewards": {"remove_unused_columns": False},
    "write data.train as a mapping of names to sources: a mixture": {"datasets": [], "test_split_size": None},
    "write --trainer.strategy sharded, which is FSDP2 over all processes: no other layout, and no offloading": {
        "parallelism_config": None,
        "fsdp": None,
        "fsdp_config": None,
        "deepspeed": None,
    },
    "write --trainer.devices N --trainer.strategy ddp: processes are Lightning's": {
        "accelerator_config": None,
        "ddp_find_unused_parameters": None,
        "ddp_bucket_cap_mb": None,
        "ddp_broadcast_buffers": None,
        "ddp_static_graph": None,
        "ddp_backend": None,
        "ddp_timeout": 1800,
        "local_rank": -1,
        "ignore_bias_buffers": False,
    },
    "not here, because the verb says what is done: fit, validate, predict": {"do_train": False, "do_predict": False},
    "not here, because it looks for faults of TRL's own trainer": {"debug": "", "skip_memory_metrics": True},
    "not here, because adapters are plain LoRA on named modules": {
        "lora_target_parameters": None,
        "lora_modules_to_save": None,
        "lora_task_type": "CAUSAL_LM",
        "use_rslora": False,
        "use_dora": False,
    },
    "not here, because weights are not quantised": {
        "load_in_8bit": False,
        "load_in_4bit": False,
        "bnb_4bit_quant_type": "nf4",
        "use_bnb_nested_quant": False,
        "bnb_4bit_quant_storage": None,
    },
    "write environment variables in front of the command": {"env": None},
}
NOT_HERE = tuple(
    Argument(name, default, how=reason) for reason, names in REASONS.items() for name, default in names.items()
)
