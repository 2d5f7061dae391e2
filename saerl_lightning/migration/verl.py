"""Arguments of verl's PPO trainer (hydra's configuration) and their counterparts here."""

from __future__ import annotations

from saerl_lightning.errors import InputError
from saerl_lightning.migration.arguments import Given, Trainer
from saerl_lightning.migration.draft import Draft, made
from saerl_lightning.migration.shared import by_name, put_loggers, put_schedule, whole_updates
from saerl_lightning.migration.verl_not_here import NOT_HERE
from saerl_lightning.migration.verl_objective import objective
from saerl_lightning.migration.verl_table import ACTOR, CARRIED, MODEL, OPTIM, ROLLOUT


def _updates(given: Given) -> int:
    """Returns the optimiser steps on each sampled batch.

    Raises:
        InputError: if the mini-batch does not divide the batch.
    """
    prompts, part = given.whole("data.train_batch_size"), given.whole(ACTOR + "ppo_mini_batch_size")
    if part > prompts and ACTOR + "ppo_mini_batch_size" not in given:
        part = prompts
    if whole_updates(prompts, part) is None:
        raise InputError(
            f"data.train_batch_size is {prompts}, no multiple of {ACTOR}ppo_mini_batch_size {part}; write numbers that fit"
        )
    return prompts // part * given.whole(ACTOR + "ppo_epochs")


def _batch(given: Given, draft: Draft) -> None:
    updates = _updates(given)
    draft.put("data.batch_size", given["data.train_batch_size"], "data.train_batch_size")
    draft.put("model.updates_per_batch", updates, ACTOR + "ppo_mini_batch_size", ACTOR + "ppo_epochs")
    draft.put("model.sampling.group_size", given[ROLLOUT + "n"], ROLLOUT + "n")
    if updates > given.whole(ACTOR + "ppo_epochs"):
        draft.notes.append(
            f"verl cuts a sampled batch into parts for its {updates} steps; here each of the {updates} updates sees all: "
            f"{given[ACTOR + 'ppo_mini_batch_size']} prompts a batch with 1 update costs and samples the same, on-policy"
        )
    if steps := given["trainer.total_training_steps"]:
        draft.put("trainer.max_steps", int(str(steps)) * updates, "trainer.total_training_steps")
        draft.put("trainer.max_epochs", -1, "trainer.total_training_steps")  # the baseline would stop after one epoch
    else:
        draft.put("trainer.max_epochs", given["trainer.total_epochs"], "trainer.total_epochs")
    for name, ours, times in (
        ("trainer.save_freq", "checkpoint.every_n_train_steps", updates),
        ("trainer.test_freq", "trainer.val_check_interval", 1),
    ):
        if (every := given.whole(name)) > 0:
            draft.put(ours, every * times, name)


def _engine(given: Given, draft: Draft) -> None:
    name = str(given[ROLLOUT + "name"])
    if name == "hf":
        draft.put("model.engine", made("HFEngine"), ROLLOUT + "name")
        return
    if name != "vllm":
        draft.lose(
            ROLLOUT + "name",
            f"not here, because engines are vLLM and the policy itself, not {name[:80]}; VLLMEngine stands",
        )
    settings = {each: given[ROLLOUT + each] for each in ("gpu_memory_utilization", "enforce_eager", "max_num_seqs")}
    level = 1 if given[ROLLOUT + "free_cache_engine"] else 0
    draft.put(
        "model.engine",
        made("VLLMEngine", **settings, sleep_level=level),
        ROLLOUT + "name",
        ROLLOUT + "free_cache_engine",
    )


def _optimizer(given: Given, draft: Draft) -> None:
    adam = {"lr": given[OPTIM + "lr"], "weight_decay": given[OPTIM + "weight_decay"], "betas": given[OPTIM + "betas"]}
    if (kind := given[OPTIM + "optimizer"]) != "AdamW":
        draft.lose(
            OPTIM + "optimizer",
            f"write --model.optimizer with a class of torch: '{kind}' is not converted, AdamW stands",
        )
    draft.put("model.optimizer", made("torch.optim.AdamW", **adam), OPTIM + "lr", OPTIM + "weight_decay")
    norm = (
        ACTOR + "grad_clip" if ACTOR + "grad_clip" in given or OPTIM + "clip_grad" not in given else OPTIM + "clip_grad"
    )
    draft.put("model.max_grad_norm", given[norm] or None, norm)
    steps = int(str(given["trainer.total_training_steps"] or 0)) * _updates(given)
    # verl counts warm-up and schedule in sampled batches
    warmup, share = given.whole(OPTIM + "lr_warmup_steps"), given.number(OPTIM + "lr_warmup_steps_ratio")
    name = OPTIM + ("lr_warmup_steps" if warmup > 0 else "lr_warmup_steps_ratio")
    shape = str(given[OPTIM + "warmup_style"] or given[OPTIM + "lr_scheduler_type"])
    names = (OPTIM + "lr_scheduler_type", name, "trainer.total_training_steps")
    put_schedule(draft, shape, warmup * _updates(given) if warmup > 0 else share, steps, names)


def _policy(given: Given, draft: Draft) -> None:
    if given[MODEL + "path"] is None:
        draft.lose(MODEL + "path", "write --model.policy.path PATH: the file names no model")
    else:
        draft.put("model.policy.path", given[MODEL + "path"], MODEL + "path")
    draft.put(
        "model.policy.gradient_checkpointing",
        given[MODEL + "enable_gradient_checkpointing"],
        MODEL + "enable_gradient_checkpointing",
    )
    draft.put("trainer.precision", "bf16-mixed", ACTOR + "fsdp_config.dtype")
    if rank := given.whole(MODEL + "lora_rank"):
        lora = {"rank": rank, "alpha": given[MODEL + "lora_alpha"], "targets": given[MODEL + "target_modules"]}
        lora["targets"] = "all-linear" if lora["targets"] == ["all-linear"] else lora["targets"]
        draft.put("model.policy.lora", lora, MODEL + "lora_rank", MODEL + "lora_alpha", MODEL + "target_modules")


def _source(place: str, limit: int) -> object:
    return made("FilePrompts", path=place, limit=limit) if limit > 0 else place


def _data(given: Given, draft: Draft) -> None:
    for name, ours, most in (
        ("data.train_files", "data.train", "data.train_max_samples"),
        ("data.val_files", "data.val", "data.val_max_samples"),
    ):
        places, limit = given[name], given.whole(most)
        if places is None:
            if ours == "data.train":
                draft.lose(name, "write --data.train PATH: the file names no data set")
            continue
        assert isinstance(places, list)
        if limit > 0 and len(places) > 1:
            draft.lose(most, "write the count of each part: several files are a mixture")
            limit = -1
        if ours == "data.train" and len(places) == 1:
            draft.put(ours, _source(places[0], limit), name)
        else:
            draft.put(ours, {key: _source(place, limit) for key, place in by_name(places).items()}, name)
    if given["data.prompt_key"] != "prompt":
        draft.put("data.columns", {"prompt": given["data.prompt_key"]}, "data.prompt_key")
    seed = given["data.seed"] if given["data.seed"] is not None else 0
    draft.put("data.shuffle_seed", seed if given["data.shuffle"] else None, "data.shuffle", "data.seed")
    if given["data.truncation"] not in ("error", None):
        draft.lose("data.truncation", "not here, because a prompt that is too long is dropped, never cut")


def _lengths(given: Given, draft: Draft) -> None:
    prompt, answer = given.whole("data.max_prompt_length"), given.whole("data.max_response_length")
    draft.put("data.chat.max_prompt_tokens", prompt, "data.max_prompt_length")
    draft.put("model.sampling.max_tokens", answer, "data.max_response_length")
    tokens = given.whole(ACTOR + "ppo_max_token_len_per_gpu")
    wanted = max(tokens, prompt + answer) if given[ACTOR + "use_dynamic_bsz"] else max(16384, prompt + answer)
    draft.put("model.micro_tokens", wanted, ACTOR + "ppo_max_token_len_per_gpu")


def _sampling(given: Given, draft: Draft) -> None:
    answer, kwargs = given["data.max_response_length"], ROLLOUT + "val_kwargs."
    draft.put("model.sampling.temperature", given[ROLLOUT + "temperature"], ROLLOUT + "temperature")
    draft.put("model.sampling.top_p", given[ROLLOUT + "top_p"], ROLLOUT + "top_p")
    draft.put("model.sampling.top_k", max(0, given.whole(ROLLOUT + "top_k")), ROLLOUT + "top_k")
    warm = given[kwargs + "temperature"] if given[kwargs + "do_sample"] else 0.0
    draft.put(
        "data.val_sampling",
        {
            "group_size": given[kwargs + "n"],
            "temperature": warm,
            "top_p": given[kwargs + "top_p"],
            "top_k": max(0, given.whole(kwargs + "top_k")),
            "max_tokens": answer,
        },
        kwargs + "n",
        kwargs + "do_sample",
    )


def _rewards(given: Given, draft: Draft) -> None:
    place = given["custom_reward_function.path"]
    first = made("MathReward")
    if place is not None:
        first = made("FunctionReward", function=f"{place}:{given['custom_reward_function.name']}")
    rewards = [first]
    buffer = "reward_model.overlong_buffer."
    if given[buffer + "enable"]:
        longest, length = given["data.max_response_length"], given[buffer + "len"]
        weight = given[buffer + "penalty_factor"]
        rewards.append(made("LengthReward", max_tokens=longest, buffer=length, weight=weight))
    draft.put("model.rewards", rewards, "custom_reward_function.path", buffer + "enable")


def _dynamic(given: Given, draft: Draft) -> None:
    if given["algorithm.filter_groups.enable"]:
        rounds = given.whole("algorithm.filter_groups.max_num_gen_batches") or 10
        draft.put("model.dynamic_sampling", {"max_rounds": rounds}, "algorithm.filter_groups.enable")


def _running(given: Given, draft: Draft) -> None:
    asked = given["trainer.logger"]
    assert isinstance(asked, list)
    put_loggers(draft, asked, "trainer.logger", str(given["trainer.project_name"]), ["console", "file"])
    if not given["trainer.val_before_train"]:
        draft.lose(
            "trainer.val_before_train", "write trainer.callbacks without ValidateAtStart: an overlay can't take it out"
        )


CONVERSIONS = {
    "batch": _batch,
    "objective": objective,
    "engine": _engine,
    "optimizer": _optimizer,
    "policy": _policy,
    "data": _data,
    "lengths": _lengths,
    "sampling": _sampling,
    "rewards": _rewards,
    "dynamic": _dynamic,
    "running": _running,
}
VERL = Trainer("verl", "0.8", (*CARRIED, *NOT_HERE), CONVERSIONS)
