"""Arguments of verl's PPO trainer that have no counterpart here, by the reason."""

from __future__ import annotations

from saerl_lightning.migration.arguments import Argument

A, M, R = "actor_rollout_ref.actor.", "actor_rollout_ref.model.", "actor_rollout_ref.rollout."
REASONS: dict[str, dict[str, object]] = {
    "not here, because hydra composes files: import the composed one, .hydra/config.yaml of a run": {"defaults": None},
    "not here, because code from a model may only run if you say so: --model.policy.trust_remote_code true": {
        M + "trust_remote_code": False,
        "data.trust_remote_code": False,
    },
    "write the template to a file and name it: --data.chat.template FILE": {M + "custom_chat_template": None},
    "not here, because memory is model.micro_tokens (tokens at once), which changes no gradient": {
        A + "ppo_micro_batch_size": None,
        A + "ppo_micro_batch_size_per_gpu": None,
        R + "log_prob_micro_batch_size": None,
        R + "log_prob_micro_batch_size_per_gpu": None,
        R + "log_prob_use_dynamic_bsz": None,
        R + "log_prob_max_token_len_per_gpu": None,
    },
    "not here, because padding is never computed with, prompts are shared, and the output head is tiled: model.shortcuts": {
        M + "use_remove_padding": True,
        M + "use_liger": False,
        M + "use_fused_kernels": False,
        A + "use_fused_kernels": False,
        A + "use_remove_padding": True,
        A + "use_prefix_grouper": False,
        A + "use_torch_compile": True,
        A + "entropy_from_logits_with_chunking": False,
        A + "entropy_checkpointing": False,
        A + "calculate_entropy": False,
        M + "fused_kernel_options.*": None,
        M + "tiled_mlp.*": None,
    },
    "write --trainer.accelerator cpu, gpu or auto": {"trainer.device": "cuda"},
    "write --trainer.strategy sharded, which is FSDP2 over all processes: no other layout, and no offloading": {
        A + "strategy": "fsdp",
        A + "fsdp_config.*": None,
        A + "megatron.*": None,
        A + "torchtitan.*": None,
        A + "veomni.*": None,
        A + "ulysses_sequence_parallel_size": 1,
        M + "enable_activation_offload": False,
    },
    "not here, because processes are Lightning's, without Ray, and each has its share of the prompts": {
        "trainer.balance_batch": True,
        "trainer.ray_wait_register_center_timeout": 300,
        "actor_rollout_ref.hybrid_engine": True,
        "actor_rollout_ref.nccl_timeout": 600,
        "ray_kwargs.*": None,
        "ray_init.*": None,
        "transfer_queue.*": None,
    },
    "write --model.engine ServerEngine and its server.tensor_parallel, server.data_parallel: VLLMEngine runs on one GPU": {
        R + "tensor_model_parallel_size": 2,
        R + "data_parallel_size": 1,
    },
    "not here, because engines have no such parts": {
        R + "expert_parallel_size": 1,
        R + "pipeline_model_parallel_size": 1,
        R + "nnodes": 0,
        R + "n_gpus_per_node": "${oc.select:trainer.n_gpus_per_node,8}",
        R + "disaggregation.*": None,
    },
    "not here, because VLLMEngine sets it, or needs none": {
        R + "mode": "async",
        R + "dtype": "bfloat16",
        R + "prompt_length": None,
        R + "response_length": None,
        R + "cudagraph_capture_sizes": None,
        R + "max_num_batched_tokens": 8192,
        R + "max_model_len": None,
        R + "enable_chunked_prefill": True,
        R + "enable_prefix_caching": True,
        R + "load_format": "dummy",
        R + "disable_log_stats": True,
        R + "calculate_log_probs": False,
        R + "layered_summon": False,
        R + "do_sample": True,
        R + "ignore_eos": False,
        R + "engine_kwargs.*": None,
        R + "checkpoint_engine.*": None,
    },
    "not here, because completions have one turn, and call no tools": {
        R + "multi_turn.*": None,
        R + "agent.*": None,
        "data.tool_config_path": None,
        "data.return_raw_chat": True,
    },
    "not here, because there is no critic": {
        "critic.*": None,
        "algorithm.gamma": 1.0,
        "algorithm.lam": 1.0,
        "trainer.critic_warmup": 0,
    },
    "not here, because the reference of the KL is the initial policy, scored with the same settings": {
        "actor_rollout_ref.ref.*": None,
    },
    "write CodeReward in model.rewards: programs run in closed processes of this machine": {
        "sandbox_fusion.*": None,
        "reward.sandbox_fusion.*": None,
        "reward_model.sandbox_fusion.*": None,
    },
    "not here, because a reward model is ModelReward, in the trainer's process, or JudgeReward, behind a server of its own": {
        "reward.reward_model.*": None,
        "reward_model.*": None,
    },
    "write model.rewards: rules and functions, graded in processes of their own; data_source is a column that they get": {
        "reward.*": None,
        "reward_manager.*": None,
        "custom_reward_function.*": None,
        "data.reward_fn_key": "data_source",
    },
    "not here, because the weight of the KL is constant": {
        "algorithm.kl_ctrl.horizon": 10000,
        "algorithm.kl_ctrl.target_kl": 0.1,
    },
    "not here, because no objective has it": {
        "algorithm.use_pf_ppo": False,
        "algorithm.pf_ppo.*": None,
        A + "tau_pos": 1.0,
        A + "tau_neg": 1.05,
        A + "policy_loss.*": None,
        A + "loss_scale_factor": None,
        "algorithm.rollout_correction.*": None,
    },
    "not here, because groups without variance are told by the first reward": {"algorithm.filter_groups.metric": None},
    "not here, because an update sees the whole batch": {A + "shuffle": False, A + "data_loader_seed": 42},
    "not here, because schedules are classes of torch: model.lr_scheduler": {A + "optim.*": None},
    "write checkpoint.save_top_k, checkpoint.monitor and checkpoint.mode; the last checkpoint is always kept, whole": {
        A + "checkpoint.*": None,
        "trainer.max_actor_ckpt_to_keep": None,
        "trainer.max_critic_ckpt_to_keep": None,
        "trainer.default_hdfs_dir": None,
        "trainer.del_local_ckpt_after_load": False,
        "trainer.esi_redundant_time": 0,
    },
    "write --ckpt_path last behind the same command: it begins a run, and goes on with it each time it is given again": {
        "trainer.resume_mode": "auto",
        "trainer.resume_from_path": None,
    },
    "not here, because the verb validate does it": {"trainer.val_only": False},
    "not here, because completions are a table of every run (CompletionTable)": {
        "trainer.log_val_generations": 0,
        "trainer.rollout_data_dir": None,
        "trainer.validation_data_dir": None,
    },
    "not here, because prompts are measured in one process": {"data.filter_overlong_prompts_workers": 1},
    "write a source of prompts of your own (docs/howto/prompts.md)": {
        "data.custom_cls.*": None,
        "data.datagen.*": None,
    },
    "write data.curriculum, data.mixing and the other operations: the plan is the sampler": {"data.sampler.*": None},
    "not here, because prompts are texts, in memory, and all columns are kept for rewards": {
        "data.*": None,
    },
    "not here, because the policy's folder has model, tokenizer and configuration, and adapters begin at zero": {
        M + "*": None
    },
    "not here, because engines have the settings of model.engine only": {R + "*": None},
    "not here, because there is no teacher: prompts come with rewards, not with another model's probabilities": {
        "distillation.*": None,
    },
    "not here, because each phase of a step is timed (time/...), and Lightning has profilers: --trainer.profiler": {
        "global_profiler.*": None,
        A + "profiler.*": None,
        R + "profiler.*": None,
    },
    "not here, because mixtures of experts and quantised weights are not trained": {
        A + "router_replay.*": None,
        A + "qat.*": None,
        M + "mtp.*": None,
    },
    "not here, because its part of verl's trainer is not": {
        "actor_rollout_ref.*": None,
        "trainer.*": None,
        "algorithm.*": None,
        "_target_": None,
    },
}
NOT_HERE = tuple(
    Argument(name, default, how=reason) for reason, names in REASONS.items() for name, default in names.items()
)
