"""`memory`: whether a training step fits on GPUs that need not be here, part by part, and lighter settings that would fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import compress, product
from typing import Any

import lightning

from saerl_lightning.data.module import PromptDataModule
from saerl_lightning.errors import InputError
from saerl_lightning.policy.decoder_sizes import DecoderSizes
from saerl_lightning.policy.memory import MemoryEstimate, StepSetting, estimate
from saerl_lightning.ranges import Count, Positive, require_arguments
from saerl_lightning.ranks.sharded import require_strategy
from saerl_lightning.rollout.engine import RolloutEngine
from saerl_lightning.rollout.vllm import VLLMEngine
from saerl_lightning.training.grpo import GRPOModule
from saerl_lightning.verbs.needed_memory import Machine, engine_memory, policy_sizes, signal_bytes, step_setting
from saerl_lightning.verbs.plan import batch_arithmetic

FREE = 0.1  # share of a card that the CUDA context, the allocator's gaps and libraries take
ASLEEP = "--model.engine.sleep_level 1"  # vLLM's weights wait in the host's memory, and its cache is given up
SLOWER: Mapping[str, dict[str, Any]] = {
    "--model.micro_tokens 4096": {"micro_tokens": 4096},
    "--model.policy.gradient_checkpointing true": {"checkpointing": True},
}
ADAPTERS: Mapping[str, dict[str, Any]] = {
    "--model.policy.dtype bfloat16 --model.policy.lora '{rank: 16, alpha: 32}'": {
        "weight_bytes": 2,
        "lora": (16, "all-linear"),
    },
}


def tell_memory(
    model: GRPOModule, datamodule: PromptDataModule, trainer: lightning.Trainer, card: Positive, cards: Count
) -> None:
    """Prints a step's memory on each card, part by part, whether it fits, and a lighter setting if it does not.

    Args:
        model: Module of the run; only its settings are read.
        datamodule: Datamodule of the run; its prompts are not read.
        trainer: Trainer that gives precision and strategy.
        card: Memory of one GPU in GB.
        cards: Number of GPUs, which share the batch, and with the strategy `sharded` the policy too.

    Raises:
        InputError: if a number is out of range or the numbers do not fit each other, the run is no GRPO run, its engine
            can't sample under that strategy, or the model or engine has no estimate.
    """
    require_arguments(tell_memory, locals())
    if not isinstance(model, GRPOModule) or not isinstance(datamodule, PromptDataModule):
        raise InputError(f"memory is estimated for a step of GRPOModule, not {type(model).__name__}; give -c grpo.yaml")
    batch_arithmetic(model, datamodule, cards)
    if datamodule.batch_size % cards:
        raise InputError(f"data.batch_size is {datamodule.batch_size}, no multiple of {cards} cards; write one")
    require_strategy(trainer, model.engine.samples_by_policy)
    machine = Machine.of(trainer, "cuda", cards, int(card * 1e9))
    step, sizes, signals = step_setting(model, datamodule, machine), _sizes(model), signal_bytes(datamodule)

    def held(setting: StepSetting, asleep: bool = False) -> MemoryEstimate:
        engine = engine_memory(model.engine, sizes, setting, machine.device, machine.card_bytes)
        if engine is None:
            raise InputError(
                f"model.engine {type(model.engine).__name__} has no estimate; give HFEngine, VLLMEngine or ServerEngine"
            )
        if asleep:
            engine = replace(engine, frees_weights=True, frees_cache=True)
        return estimate(sizes, setting, engine, *signals)

    made, room = held(step), (1 - FREE) * card * 1e9
    where = f"each of {cards} cards" if cards > 1 else "one card"
    unit, name = (1e9, "GB") if made.total >= 1e9 else (1e6, "MB")
    print(f"a step on {where} of {card:g} GB, precision {machine.precision}; in {name}:")
    print(*(f"  {part.replace('_', ' '):<12}{size / unit:8.1f}" for part, size in made.parts.items() if size), sep="\n")
    print(f"  at once: updating {made.updating / unit:.1f}, sampling {made.sampling / unit:.1f}")
    fits = "fits" if made.total <= room else "does not fit"
    left = f"{room / 1e9:.1f} GB" if name == "MB" else f"{room / 1e9:.1f}"
    print(f"{fits}: at most {made.total / unit:.1f} {name} of {left}; {FREE:.0%} of a card is left for CUDA")
    if made.total > room:
        changes = _changes(1 if model.engine.samples_by_policy else cards, awake=_awake(model.engine))
        print(
            _advice(((flags, held(lighter, asleep).total) for flags, lighter, asleep in _lighter(step, changes)), room)
        )


def _awake(engine: RolloutEngine) -> bool:
    """Whether the engine keeps GPU memory in the update that it could free."""
    return isinstance(engine, VLLMEngine) and not engine.sleep_level


def _changes(shards: int, awake: bool) -> dict[str, dict[str, Any]]:
    """Flags and what they change in a step, from the one that costs least time to the one that changes what is trained."""
    sleeping: dict[str, dict[str, Any]] = {ASLEEP: {}} if awake else {}
    between = {"--trainer.strategy sharded": {"shards": shards, "copies": False}} if shards > 1 else {}
    return {**sleeping, **SLOWER, **between, **ADAPTERS}


def _lighter(step: StepSetting, flags: Mapping[str, dict[str, Any]]) -> Iterator[tuple[str, StepSetting, bool]]:
    """Yields flags, the step with them, and whether the engine sleeps, the fastest first."""
    row = step.prompt_tokens + step.completion_tokens  # is never cut
    for taken in sorted(product((False, True), repeat=len(flags)), key=lambda each: each[::-1]):
        changes = dict(compress(flags.items(), taken))
        lighter = replace(step, **{name: value for change in changes.values() for name, value in change.items()})
        differs = all(replace(step, **change) != step for flag, change in changes.items() if flag != ASLEEP)
        if changes and differs and row <= lighter.micro_tokens <= step.micro_tokens:
            yield " ".join(changes), lighter, ASLEEP in changes


def _advice(tried: Iterable[tuple[str, int]], room: float) -> str:
    """Words the first lighter setting that fits, or that none does."""
    last = ""
    for flags, total in tried:
        last = f"with {flags}: {total / 1e9:.1f} GB"
        if total <= room:
            return f"it fits {last}"
    return f"nor do lighter settings fit{f' ({last})' * bool(last)}; take a larger card or a smaller model"


def _sizes(model: GRPOModule) -> DecoderSizes:
    """Reads the policy's sizes.

    Raises:
        InputError: if its configuration can't be read, or the model is not Llama-like.
    """
    path = model.policy.path
    try:
        sizes = policy_sizes(model)
    except (OSError, ValueError) as error:
        raise InputError(
            f"the configuration of model.policy.path '{path}' can't be read; write an HF folder with a config.json, or the "
            "name of a model on the hub with a network at hand"
        ) from error
    if sizes is None:
        raise InputError(
            f"model.policy.path '{path}' is not Llama-like (Llama, Mistral, Qwen2, Qwen3): it has no estimate"
        )
    return sizes
