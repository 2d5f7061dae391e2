"""Arguments of verl's PPO trainer (hydra's configuration) and their counterparts here."""

from __future__ import annotations

import json
from pathlib import Path

from saerl_lightning.errors import InputError
from saerl_lightning.migration.arguments import Given, Trainer
from saerl_lightning.migration.draft import Draft, made
from saerl_lightning.migration.shared import (
    by_name,
    put_batch,
    put_devices,
    put_loggers,
    put_schedule,
    source,
    whole_updates,
)
from saerl_lightning.migration.verl_not_here import NOT_HERE
from saerl_lightning.migration.verl_objective import objective
from saerl_lightning.migration.verl_reward import rewards
from saerl_lightning.migration.verl_table import ACTOR, CARRIED, MODEL, OPTIM, ROLLOUT


def _parts(given: Given) -> tuple[int, int]:
    """Returns the parts of each sampled batch, with an optimiser step each, and how often each is used.

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
    return prompts // part, given.whole(ACTOR + "ppo_epochs")


def _batch(given: Given, draft: Draft) -> None:
    parts, passes = _parts(given)
    steps = parts * passes  # verl counts in sampled batches, we in optimiser steps
    check = max(0, given.whole("trainer.test_freq")) * steps
    names = ("data.train_batch_size", ACTOR + "ppo_mini_batch_size", ACTOR + "ppo_epochs")
    updates = put_batch(draft, given.whole("data.train_batch_size"), parts, passes, check, names)
    draft.put("model.sampling.group_size", given[ROLLOUT + "n"], ROLLOUT + "n")
    if total := given["trainer.total_training_steps"]:
        draft.put("trainer.max_steps", int(str(total)) * steps, "trainer.total_training_steps")
        draft.put("trainer.max_epochs", -1, "trainer.total_training_steps")  # the baseline would stop after one epoch
    else:
        draft.put("trainer.max_epochs", given["trainer.total_epochs"], "trainer.total_epochs")
    if (every := given.whole("trainer.save_freq")) > 0:
        draft.put("checkpoint.every_n_train_steps", every * steps, "trainer.save_freq")
    if check:
        draft.put("trainer.val_check_interval", check // updates, "trainer.test_freq")


def _devices(given: Given, draft: Draft) -> None:
    names = ("trainer.n_gpus_per_node", "trainer.nnodes")
    put_devices(draft, given.whole(names[0]), given.whole(names[1]), names)


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
    parts, passes = _parts(given)
    steps = int(str(given["trainer.total_training_steps"] or 0)) * parts * passes
    # verl counts warm-up and schedule in sampled batches
    warmup, share = given.whole(OPTIM + "lr_warmup_steps"), given.number(OPTIM + "lr_warmup_steps_ratio")
    name = OPTIM + ("lr_warmup_steps" if warmup > 0 else "lr_warmup_steps_ratio")
    shape = str(given[OPTIM + "warmup_style"] or given[OPTIM + "lr_scheduler_type"])
    names = (OPTIM + "lr_scheduler_type", name, "trainer.total_training_steps")
    put_schedule(draft, shape, warmup * parts * passes if warmup > 0 else share, steps, names)


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
    return source(place, limit=limit) if limit > 0 else place


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


def _dynamic(given: Given, draft: Draft) -> None:
    if given["algorithm.filter_groups.enable"]:
        rounds = given.whole("algorithm.filter_groups.max_num_gen_batches") or 10
        draft.put("model.dynamic_sampling", {"max_rounds": rounds}, "algorithm.filter_groups.enable")


def _running(given: Given, draft: Draft) -> None:
    asked = given["trainer.logger"]
    assert isinstance(asked, list)
    run = "trainer.experiment_name" if "trainer.experiment_name" in given else None
    put_loggers(draft, asked, "trainer.logger", ["console", "file"], str(given["trainer.project_name"]), run)
    if not given["trainer.val_before_train"]:
        draft.lose(
            "trainer.val_before_train", "write trainer.callbacks without ValidateAtStart: an overlay can't take it out"
        )


CONVERSIONS = {
    "batch": _batch,
    "objective": objective,
    "engine": _engine,
    "devices": _devices,
    "optimizer": _optimizer,
    "policy": _policy,
    "data": _data,
    "lengths": _lengths,
    "sampling": _sampling,
    "rewards": rewards,
    "dynamic": _dynamic,
    "running": _running,
}


def _defaults() -> dict[str, list[object]]:
    """Reads the defaults of verl's arguments: of 0.8.0 first, then those that differ in 0.4 to 0.7."""
    tree = json.loads(Path(__file__).with_name("verl_arguments.json").read_text())
    return {f"{above}.{last}" if above else last: each for above, below in tree.items() for last, each in below.items()}


VERL = Trainer("verl", "0.8", (*CARRIED, *NOT_HERE), CONVERSIONS, _defaults())
