"""Arguments of TRL's GRPO script (GRPOConfig, model and script arguments) and their counterparts here."""

from __future__ import annotations

from saerl_lightning.errors import InputError, did_you_mean
from saerl_lightning.migration.arguments import Given, Trainer
from saerl_lightning.migration.draft import Draft, made
from saerl_lightning.migration.shared import put_batch, put_devices, put_loggers, put_schedule, source, whole_updates
from saerl_lightning.migration.trl_not_here import NOT_HERE
from saerl_lightning.migration.trl_objective import objective
from saerl_lightning.migration.trl_table import CARRIED

THINK = r"^<think>(?!.*<think>)(.*?)</think>.*$"
REWARDS: dict[str, tuple[str, dict[str, object]]] = {
    "accuracy_reward": ("MathReward", {}),
    "reasoning_accuracy_reward": ("MathReward", {}),
    "think_format_reward": ("FormatReward", {"pattern": THINK}),
    "get_soft_overlong_punishment": ("LengthReward", {"max_tokens": 1280, "buffer": 256}),
}


def _parts(given: Given) -> tuple[int, int, int]:
    """Returns prompts per sampled batch, the parts that it is cut into for an optimiser step each, and how often it is used.

    Raises:
        InputError: if the numbers do not fit each other, as in TRL.
    """
    micro = given.whole("per_device_train_batch_size") * given.processes
    accumulated, group = given.whole("gradient_accumulation_steps"), given.whole("num_generations")
    rows, steps = given["generation_batch_size"], given["steps_per_generation"]
    if rows is not None and steps is not None:
        raise InputError(
            "generation_batch_size and steps_per_generation are both given; TRL takes one: delete the other"
        )
    sampled = int(rows) if isinstance(rows, int) else micro * (steps if isinstance(steps, int) else accumulated)
    if sampled % micro or sampled % group:
        raise InputError(
            f"{sampled} completions a batch (with --processes {given.processes}) are no multiple of {micro} = "
            f"per_device_train_batch_size x processes and of num_generations {group}; write numbers that fit"
        )
    step, repeated = micro * accumulated, given.whole("num_iterations")
    if parts := whole_updates(sampled, step):
        return sampled // group, parts, repeated
    if updates := whole_updates(sampled * repeated, step):
        return sampled // group, 1, updates
    if repeated > 1 or step % sampled or step % group:
        raise InputError(
            f"an optimiser step of {step} completions takes parts of sampled batches of {sampled}, used {repeated} times; "
            "set gradient_accumulation_steps to steps_per_generation"
        )
    return step // group, 1, 1


def _batch(given: Given, draft: Draft) -> None:
    prompts, parts, passes = _parts(given)
    names = ["per_device_train_batch_size", "gradient_accumulation_steps"]
    names += [each for each in ("generation_batch_size", "steps_per_generation") if each in given]
    check = _checked_every(given)
    updates = put_batch(draft, prompts, parts, passes, check, (*names, "num_generations", "num_iterations"))
    draft.put("model.sampling.group_size", given["num_generations"], "num_generations")
    if check:
        draft.put("trainer.val_check_interval", max(1, check // updates), "eval_steps")
    if steps := max(0, given.whole("max_steps")):
        draft.put("trainer.max_steps", steps, "max_steps")
        draft.put("trainer.max_epochs", -1, "max_steps")  # the baseline would stop after one epoch
        return
    epochs = given.number("num_train_epochs")
    if epochs == int(epochs) and epochs >= 1:
        draft.put("trainer.max_epochs", int(epochs), "num_train_epochs")
    else:
        draft.lose("num_train_epochs", f"write --trainer.max_steps N: {epochs:g} is no whole number of epochs")


def _checked_every(given: Given) -> int:
    """Returns the optimiser steps between two validations; 0 if they are not counted so."""
    if given["dataset_name"] is None or given["eval_strategy"] != "steps":
        return 0
    return given.whole("eval_steps" if given["eval_steps"] else "logging_steps")


def _engine(given: Given, draft: Draft) -> None:
    _put_engine(given, draft)
    put_devices(draft, given.processes, 1, ["--processes"])


def _put_engine(given: Given, draft: Draft) -> None:
    if not given["use_vllm"]:
        draft.put("model.engine", made("HFEngine"), "use_vllm")
        return
    if given.one_of("vllm_mode", ["colocate", "server"]) == "server":
        _put_servers(given, draft)
        return
    # TRL sleeps at level 2
    settings = {
        "gpu_memory_utilization": given["vllm_gpu_memory_utilization"],
        "sleep_level": 2 if given["vllm_enable_sleep_mode"] else 0,
    }
    draft.put(
        "model.engine", made("VLLMEngine", **settings), "use_vllm", *settings_of(given, "vllm_gpu", "vllm_enable")
    )


def _put_servers(given: Given, draft: Draft) -> None:
    host = str(given["vllm_server_host"]).replace("0.0.0.0", "127.0.0.1")  # noqa: S104 - TRL's default, no place to ask
    url = str(given["vllm_server_base_url"] or f"http://{host}:{given['vllm_server_port']}")
    draft.put(
        "model.engine", made("ServerEngine", urls=[url]), "vllm_mode", "use_vllm", *settings_of(given, "vllm_server")
    )
    draft.notes.append(
        f"{url} must be a server that this program's command `serve` started: TRL's own speaks another way"
    )


def settings_of(given: Given, *beginnings: str) -> list[str]:
    """Returns the names of given arguments that begin so."""
    return [name for name in given.values if name.startswith(beginnings)]


def _optimizer(given: Given, draft: Draft) -> None:
    if (optim := str(given["optim"])) not in ("adamw_torch", "adamw_torch_fused"):
        draft.lose("optim", f"write --model.optimizer with a class of torch: '{optim}' is not converted, AdamW stands")
    adam = made(
        "torch.optim.AdamW",
        lr=given["learning_rate"],
        weight_decay=given["weight_decay"],
        betas=[given["adam_beta1"], given["adam_beta2"]],
        eps=given["adam_epsilon"],
    )
    draft.put("model.optimizer", adam, "learning_rate", "weight_decay")
    norm = given.number("max_grad_norm")
    draft.put("model.max_grad_norm", norm or None, "max_grad_norm")
    warmup = given.number("warmup_steps") or given.number("warmup_ratio")
    warm = "warmup_ratio" if "warmup_ratio" in given and not given["warmup_steps"] else "warmup_steps"
    steps = max(0, given.whole("max_steps"))
    put_schedule(draft, str(given["lr_scheduler_type"]), warmup, steps, ("lr_scheduler_type", warm, "max_steps"))


def _policy(given: Given, draft: Draft) -> None:
    if given["model_name_or_path"] is None:
        draft.lose("model_name_or_path", "write --model.policy.path PATH: the file names no model")
    else:
        draft.put("model.policy.path", given["model_name_or_path"], "model_name_or_path")
    dtype = str(given["dtype"] if "dtype" in given or "torch_dtype" not in given else given["torch_dtype"])
    half = bool(given["bf16"]) if given["bf16"] is not None else not given["fp16"]
    draft.put("trainer.precision", "bf16-mixed" if half else "16-mixed" if given["fp16"] else "32-true", "bf16")
    adapters = bool(given["use_peft"])
    if dtype not in ("float32", "bfloat16") or (dtype == "bfloat16" and not adapters):
        draft.lose(
            "dtype", f"not here, because trained weights are float32 (computed in trainer.precision), not {dtype}"
        )
        dtype = "float32"
    draft.put("model.policy.dtype", dtype, "dtype")
    if not adapters:
        return
    if given.number("lora_dropout") and "lora_dropout" in given:
        draft.lose("lora_dropout", "not here, because the policy that is trained must be the one that sampled; it is 0")
    targets = given["lora_target_modules"] or ["q_proj", "v_proj"]  # peft's for Llama and Qwen
    targets = "all-linear" if targets == ["all-linear"] else targets
    lora = {"rank": given["lora_r"], "alpha": given["lora_alpha"], "dropout": 0.0, "targets": targets}
    draft.put("model.policy.lora", lora, "use_peft", "lora_r", "lora_alpha", "lora_target_modules")


def _source(given: Given, draft: Draft, split: str) -> object | None:
    """Returns the prompts of a split; None, and the reason in the draft, if the data set has no splits."""
    place, config = str(given["dataset_name"]), given["dataset_config"]
    found = source(place, str(given[split]), None if config is None else str(config))
    if found is None:
        ours = "data.train" if split == "dataset_train_split" else "data.val.test"
        draft.lose(split, f"write --{ours} PATH: {place} has no splits, and so no {given[split]!r}")
    return found


def _data(given: Given, draft: Draft) -> None:
    if given["dataset_name"] is None:
        draft.lose("dataset_name", "write --data.train PATH: the file names no data set by dataset_name")
    else:
        if (train := _source(given, draft, "dataset_train_split")) is not None:
            draft.put("data.train", train, "dataset_name", "dataset_train_split")
    if given["dataset_name"] is not None and given["eval_strategy"] not in ("no", "False"):
        if (test := _source(given, draft, "dataset_test_split")) is not None:
            draft.put("data.val", {"test": test}, "eval_strategy", "dataset_test_split")
        group = given["num_generations_eval"] or given["num_generations"]
        sampling = {name: given[theirs] for name, theirs in SAMPLING.items()}
        draft.put("data.val_sampling", {"group_size": group, **sampling}, "num_generations_eval", "temperature")
        if given["eval_strategy"] != "steps":
            draft.put("trainer.val_check_interval", 1.0, "eval_strategy")
            draft.put("trainer.check_val_every_n_epoch", 1, "eval_strategy")
    if not given["shuffle_dataset"]:
        draft.put("data.shuffle_seed", None, "shuffle_dataset")
    else:
        seed = "data_seed" if given["data_seed"] is not None else "seed"
        draft.put("data.shuffle_seed", given[seed], seed)


SAMPLING = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "max_tokens": "max_completion_length"}


def _length(given: Given, draft: Draft) -> None:
    longest, prompt = given["max_completion_length"], given["max_prompt_length"]
    if longest is None:
        draft.lose("max_completion_length", "write --model.sampling.max_tokens N: every completion has a limit here")
        longest = 1024  # that of configs/grpo.yaml
    else:
        draft.put("model.sampling.max_tokens", longest, "max_completion_length")
    if prompt is not None:
        draft.put("data.chat.max_prompt_tokens", prompt, "max_prompt_length")
    assert isinstance(longest, int)
    row = longest + (prompt if isinstance(prompt, int) else 1024)
    if row > 16384:
        draft.put("model.micro_tokens", row, "max_completion_length")


def _rewards(given: Given, draft: Draft) -> None:
    model, names, weights = given["reward_model_name_or_path"], given["reward_funcs"], given["reward_weights"]
    unread = [each for each in ("reward_model_name_or_path", "reward_funcs") if each in draft.lost]
    if unread or (model is None and not names):
        why = f"{unread[0]} could not be read, see below" if unread else "the file names none by reward_funcs"
        draft.other_reward = f"{why}; write model.rewards (docs/howto/reward.md). MathReward stands in its place"
        if weights is not None:
            draft.lose(
                "reward_weights", "write the weight of each reward in model.rewards: it is not known which they are"
            )
        return
    rewards = [] if model is None else [("ModelReward", {"path": model})]  # TRL puts it first
    rewards += [_reward(str(name)) for name in names] if isinstance(names, list) else []
    weights = [1.0] * len(rewards) if weights is None else weights
    assert isinstance(weights, list)
    if len(weights) != len(rewards):
        raise InputError(
            f"reward_weights has {len(weights)} numbers and reward_funcs {len(rewards)} names"
            f"{', with reward_model_name_or_path' * (model is not None)}; write one for each"
        )
    written = [made(kind, **arguments, weight=each) for (kind, arguments), each in zip(rewards, weights, strict=True)]
    draft.put("model.rewards", written, *settings_of(given, "reward_"))


def _reward(name: str) -> tuple[str, dict[str, object]]:
    """Returns the class and the arguments of a function of TRL, or of the user's own.

    Raises:
        InputError: naming those that there are.
    """
    if name in REWARDS:
        return REWARDS[name]
    if "." not in name:
        raise InputError(
            f"reward_funcs has {name[:120]!r}; write one of {', '.join(REWARDS)}, or my_module.my_function"
            f"{did_you_mean(name, REWARDS)}"
        )
    return "FunctionReward", {"function": name}


def _logging(given: Given, draft: Draft) -> None:
    asked = given["report_to"]
    assert isinstance(asked, list)
    run = "run_name" if given["run_name"] is not None else None
    put_loggers(draft, asked, "report_to", ["none", "all"], str(given["project"]), run)


def _saving(given: Given, draft: Draft) -> None:
    if "save_steps" not in given or given["save_strategy"] in ("no", "epoch", "False"):
        return
    steps = given.number("save_steps")
    if steps < 1:
        draft.lose("save_steps", "write --checkpoint.every_n_train_steps N: a share of the run is not converted")
        return
    updates = draft.settings["model.updates_per_batch"][0]
    assert isinstance(updates, int)
    draft.put("checkpoint.every_n_train_steps", -(-int(steps) // updates) * updates, "save_steps")


CONVERSIONS = {
    "batch": _batch,
    "objective": objective,
    "engine": _engine,
    "optimizer": _optimizer,
    "policy": _policy,
    "data": _data,
    "length": _length,
    "rewards": _rewards,
    "logging": _logging,
    "saving": _saving,
}
TRL = Trainer("TRL", "1.16", (*CARRIED, *NOT_HERE), CONVERSIONS)
