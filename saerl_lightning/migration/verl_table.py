"""Arguments of verl's trainer that have a counterpart here: name, default there, setting here, kind, conversion in words."""

from __future__ import annotations

from saerl_lightning.migration.arguments import Argument, together
from saerl_lightning.migration.values import (
    count,
    flag,
    mapping,
    number,
    numbers,
    path,
    paths,
    scalars,
    text,
    texts,
    whole,
)
from saerl_lightning.migration.verl_reward import (
    BUFFER,
    LONGEST,
    MANAGER,
    MANAGER_SOURCE,
    MODEL_ENABLE,
    MODEL_PATH,
    WORKERS,
)

ACTOR = "actor_rollout_ref.actor."
MODEL = "actor_rollout_ref.model."
ROLLOUT = "actor_rollout_ref.rollout."
OPTIM = ACTOR + "optim."
LOCAL_DIR = "checkpoints/${trainer.project_name}/${trainer.experiment_name}"
CARRIED = (
    *together(
        "policy",
        (MODEL + "path", None, "model.policy.path", path, ""),
        (MODEL + "enable_gradient_checkpointing", True, "model.policy.gradient_checkpointing", flag, ""),
        (MODEL + "lora_rank", 0, "model.policy.lora.rank", whole, "0 is lora: null"),
        (MODEL + "lora_alpha", 16, "model.policy.lora.alpha", count, ""),
        (MODEL + "target_modules", ["all-linear"], "model.policy.lora.targets", texts, ""),
    ),
    *together(
        "data",
        ("data.train_files", None, "data.train", paths, "several are a mixture, all of each"),
        ("data.val_files", None, "data.val", paths, "sets named after their files"),
        ("data.train_max_samples", -1, "data.train.limit", whole, "the first ones; verl draws them if it shuffles"),
        ("data.val_max_samples", -1, "data.val", whole, "limit of each set"),
        ("data.prompt_key", "prompt", "data.columns.prompt", text, ""),
        ("data.shuffle", True, "data.shuffle_seed", flag, "false is null"),
        ("data.seed", None, "data.shuffle_seed", whole, "null is 0"),
        ("data.filter_overlong_prompts", False, "data.chat.max_prompt_tokens", flag, "always true"),
        ("data.truncation", "error", "data.chat.max_prompt_tokens", text, "longer prompts are dropped, never cut"),
    ),
    Argument("data.val_batch_size", None, "data.val_batch_size", "", count, "", implied=False),
    Argument("data.apply_chat_template_kwargs", {}, "data.chat.options", "", scalars, "", implied=False),
    Argument("trainer.default_local_dir", LOCAL_DIR, "run_dir", "", path, "", implied=False),
    *together(
        "lengths",
        ("data.max_prompt_length", 512, "data.chat.max_prompt_tokens", count, ""),
        ("data.max_response_length", 512, "model.sampling.max_tokens", count, ""),
        (ACTOR + "use_dynamic_bsz", False, "model.micro_tokens", flag, ""),
        (
            ACTOR + "ppo_max_token_len_per_gpu",
            16384,
            "model.micro_tokens",
            count,
            "with use_dynamic_bsz; the longest row at least",
        ),
    ),
    *together(
        "batch",
        ("data.train_batch_size", 1024, "data.batch_size", count, "prompts; cut into parts of ppo_mini_batch_size"),
        (
            ACTOR + "ppo_mini_batch_size",
            256,
            "model.updates_per_batch",
            count,
            "and batch_size: a batch here is a part there, since every update sees the whole batch; the file has the choice",
        ),
        (ACTOR + "ppo_epochs", 1, "model.updates_per_batch", count, "updates with the same part"),
        (ROLLOUT + "n", 1, "model.sampling.group_size", count, ""),
        ("trainer.total_epochs", 30, "trainer.max_epochs", count, "unless total_training_steps is given"),
        (
            "trainer.total_training_steps",
            None,
            "trainer.max_steps",
            count,
            "x parts x ppo_epochs: steps here are the optimiser's",
        ),
        ("trainer.save_freq", -1, "checkpoint.every_n_train_steps", whole, "x parts x ppo_epochs"),
        ("trainer.test_freq", -1, "trainer.val_check_interval", whole, "x parts, in sampled batches here"),
    ),
    *together(
        "objective",
        (
            "algorithm.adv_estimator",
            "gae",
            "model.objective",
            text,
            "grpo by loss_agg_mode, rloo RLOO, reinforce_plus_plus(_baseline) ReinforcePP; no gae: there is no critic",
        ),
        (
            ACTOR + "loss_agg_mode",
            "token-mean",
            "model.objective",
            text,
            "token-mean DAPO, seq-mean-token-mean GRPO, seq-mean-token-sum-norm DrGRPO",
        ),
        (ACTOR + "policy_loss.loss_mode", "vanilla", "model.objective", text, "gspo GSPO, cispo CISPO"),
        (
            "algorithm.norm_adv_by_std_in_grpo",
            True,
            "model.objective.scale_by_std",
            flag,
            "GRPO only; false is DrGRPO's",
        ),
        (ACTOR + "clip_ratio", 0.2, "model.objective.clip_low", number, "and clip_high, unless these are given"),
        (ACTOR + "clip_ratio_low", 0.2, "model.objective.clip_low", number, "with cispo, 1 - ratio_floor"),
        (ACTOR + "clip_ratio_high", 0.2, "model.objective.clip_high", number, "with cispo, ratio_cap - 1"),
        (ACTOR + "clip_ratio_c", 3.0, "model.objective.dual_clip", number, ""),
        (ACTOR + "entropy_coeff", 0.0, "model.objective.entropy.bonus", number, ""),
        (ACTOR + "use_kl_loss", False, "model.objective.kl.where", flag, "loss"),
        (ACTOR + "kl_loss_coef", 0.001, "model.objective.kl.weight", number, "with use_kl_loss"),
        (ACTOR + "kl_loss_type", "low_var_kl", "model.objective.kl.estimator", text, "kl k1, mse k2, low_var_kl k3"),
        (
            "algorithm.use_kl_in_reward",
            False,
            "model.objective.kl.where",
            flag,
            "reward; verl subtracts it token by token",
        ),
        ("algorithm.kl_ctrl.kl_coef", 0.001, "model.objective.kl.weight", number, "with use_kl_in_reward"),
        ("algorithm.kl_ctrl.type", "fixed", "model.objective.kl.weight", text, "fixed only"),
        ("algorithm.kl_penalty", "kl", "model.objective.kl.estimator", text, "with use_kl_in_reward"),
        ("algorithm.rollout_correction.rollout_is", None, "model.objective.correction.level", text, "mode: truncate"),
        ("algorithm.rollout_correction.rollout_is_threshold", 2.0, "model.objective.correction.cap", number, ""),
    ),
    *together(
        "dynamic",
        ("algorithm.filter_groups.enable", False, "model.dynamic_sampling", flag, ""),
        (
            "algorithm.filter_groups.max_num_gen_batches",
            10,
            "model.dynamic_sampling.max_rounds",
            whole,
            "0, no end, is 10",
        ),
    ),
    *together(
        "engine",
        (ROLLOUT + "name", "vllm", "model.engine", text, "vllm VLLMEngine, hf HFEngine; no sglang, trtllm"),
        (ROLLOUT + "gpu_memory_utilization", 0.5, "model.engine.gpu_memory_utilization", number, ""),
        (ROLLOUT + "enforce_eager", False, "model.engine.enforce_eager", flag, ""),
        (ROLLOUT + "max_num_seqs", 1024, "model.engine.max_num_seqs", count, ""),
        (ROLLOUT + "free_cache_engine", True, "model.engine.sleep_level", flag, "true is 1"),
    ),
    *together(
        "devices",
        (
            "trainer.n_gpus_per_node",
            8,
            "trainer.devices",
            count,
            "1 with VLLMEngine; the command says how all are used",
        ),
        ("trainer.nnodes", 1, "trainer.num_nodes", count, "the same"),
    ),
    *together(
        "sampling",
        (ROLLOUT + "temperature", 1.0, "model.sampling.temperature", number, ""),
        (ROLLOUT + "top_p", 1.0, "model.sampling.top_p", number, ""),
        (ROLLOUT + "top_k", -1, "model.sampling.top_k", number, "-1 is 0"),
        (ROLLOUT + "val_kwargs.n", 1, "data.val_sampling.group_size", count, ""),
        (ROLLOUT + "val_kwargs.do_sample", False, "data.val_sampling.temperature", flag, "false is 0"),
        (ROLLOUT + "val_kwargs.temperature", 0.0, "data.val_sampling.temperature", number, ""),
        (ROLLOUT + "val_kwargs.top_p", 1.0, "data.val_sampling.top_p", number, ""),
        (ROLLOUT + "val_kwargs.top_k", -1, "data.val_sampling.top_k", whole, "-1 is 0"),
    ),
    *together(
        "optimizer",
        (OPTIM + "lr", 1e-06, "model.optimizer.lr", number, ""),
        (OPTIM + "weight_decay", 0.01, "model.optimizer.weight_decay", number, ""),
        (OPTIM + "betas", [0.9, 0.999], "model.optimizer.betas", numbers, ""),
        (OPTIM + "optimizer", "AdamW", "model.optimizer", text, "AdamW; name others yourself"),
        (ACTOR + "grad_clip", 1.0, "model.max_grad_norm", number, ""),
        (OPTIM + "clip_grad", 1.0, "model.max_grad_norm", number, ""),
        (OPTIM + "lr_warmup_steps", -1, "model.warmup_steps", whole, "x parts x ppo_epochs"),
        (OPTIM + "lr_warmup_steps_ratio", 0.0, "model.warmup_steps", number, "needs trainer.total_training_steps"),
        (
            OPTIM + "lr_scheduler_type",
            "constant",
            "model.lr_scheduler",
            text,
            "cosine needs trainer.total_training_steps",
        ),
        (OPTIM + "warmup_style", None, "model.lr_scheduler", text, "older name of lr_scheduler_type"),
    ),
    *together(
        "rewards",
        *(
            row
            for above in ("reward.", "")
            for row in (
                (above + "custom_reward_function.path", None, "model.rewards", path, "FunctionReward"),
                (above + "custom_reward_function.name", "compute_score", "model.rewards.function", text, ""),
                (above + "custom_reward_function.reward_kwargs", None, "model.rewards.arguments", mapping, ""),
            )
        ),
        *((name, None, "model.rewards.workers", count, "if the file says it; here processes") for name in WORKERS),
        *((name, None, "model.rewards", text, "naive, dapo, prime, remote, rate_limited") for name in MANAGER),
        *((name, None, "model.rewards", text, "register only") for name in MANAGER_SOURCE),
        *((name, False, "model.rewards", flag, "ModelReward, where no function is named") for name in MODEL_ENABLE),
        *((name, None, "model.rewards.path", path, "of ModelReward") for name in MODEL_PATH),
        *(
            row
            for above in BUFFER
            for row in (
                (above + "enable", False, "model.rewards", flag, "LengthReward"),
                (above + "len", 512, "model.rewards.buffer", count, "of LengthReward"),
                (above + "penalty_factor", 1.0, "model.rewards.weight", number, "of LengthReward"),
            )
        ),
        *((name, None, "model.rewards.max_tokens", count, "of LengthReward") for name in LONGEST),
    ),
    *together(
        "running",
        ("trainer.logger", ["console", "wandb"], "trainer.logger+", texts, "wandb and tensorboard"),
        ("trainer.project_name", "verl_examples", "trainer.logger+", text, "project in W&B"),
        ("trainer.experiment_name", "gsm8k", "trainer.logger+", text, "name in W&B, if the file says it"),
        ("trainer.val_before_train", True, "trainer.callbacks", flag, "ValidateAtStart, in the baseline"),
    ),
)
