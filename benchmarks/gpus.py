"""Prints the tables of docs/gpus.md: the estimated memory of a GRPO step for published models on cards of 24, 48 and 80 GB.

Nothing is loaded or measured: the numbers come from `policy/memory.py`, as in the line that `plan` and `fit` print. Each of N
cards has a share of the batch and a vLLM of its own, and holds the whole policy (ddp) or a share of it (sharded).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from saerl_lightning.policy.decoder_sizes import DecoderSizes
from saerl_lightning.policy.memory import EngineMemory, MemoryEstimate, StepSetting, estimate
from saerl_lightning.policy.scoring import KEPT_BYTES, TILE_BYTES

QKV = ("q", "k", "v")
# From the config.json that each model is published with.
MODELS = {
    "Qwen2.5-0.5B": DecoderSizes(24, 896, 14, 2, 64, 4864, 151_936, True, QKV),
    "Qwen2.5-1.5B": DecoderSizes(28, 1536, 12, 2, 128, 8960, 151_936, True, QKV),
    "Qwen2.5-3B": DecoderSizes(36, 2048, 16, 2, 128, 11_008, 151_936, True, QKV),
    "Qwen2.5-7B": DecoderSizes(28, 3584, 28, 4, 128, 18_944, 152_064, False, QKV),
    "Llama-3.1-8B": DecoderSizes(32, 4096, 32, 8, 128, 14_336, 128_256, False),
}
CARDS = ((24, 1), (48, 1), (80, 1), (24, 8), (80, 8))  # GB, number of cards
RESERVE = 0.9  # share of a card that may be held: the rest is for the CUDA context and the allocator
CACHE = 2 * 2**30  # bytes of vLLM's cache: kv_cache_gb 2
PROMPTS, GROUP, PROMPT_TOKENS, COMPLETION_TOKENS = 16, 8, 1024, 1024  # of configs/grpo.yaml


@dataclass(frozen=True)
class Setting:
    """One way to train: which weights, whether cards share them, and how micro-batches and activations are held."""

    lora: bool
    micro_tokens: int
    checkpointing: bool
    sharded: bool = False

    def __str__(self) -> str:
        """Writes the settings as a reader types them, shortened."""
        weights = "LoRA 16, bfloat16" if self.lora else "all weights"
        shared = ", sharded" if self.sharded else ""
        return f"{weights}{shared}, micro_tokens {self.micro_tokens}{', checkpointing' if self.checkpointing else ''}"


# From the fastest to the lightest; adapters, which change what is trained, come last.
HELD = ((False, 16_384), (False, 4096), (True, 16_384), (True, 4096), (True, 2048))
SETTINGS = tuple(
    Setting(lora, micro, checkpointing, sharded)
    for lora, sharded, (checkpointing, micro) in product((False, True), (False, True), HELD)
)


def memory(sizes: DecoderSizes, setting: Setting, cards: int) -> MemoryEstimate:
    """The estimate for one of `cards` cards: precision bf16-mixed, AdamW, vLLM asleep in the update."""
    step = StepSetting(
        prompts=PROMPTS // cards,
        group_size=GROUP,
        prompt_tokens=PROMPT_TOKENS,
        completion_tokens=COMPLETION_TOKENS,
        micro_tokens=setting.micro_tokens,
        weight_bytes=2 if setting.lora else 4,
        mixed=True,
        lora=(16, "all-linear") if setting.lora else None,
        checkpointing=setting.checkpointing,
        tile_bytes=TILE_BYTES["cuda"],
        kept_bytes=KEPT_BYTES["cuda"],
        copies=cards > 1 and not setting.sharded,
        shards=cards if setting.sharded else 1,
    )
    return estimate(sizes, step, EngineMemory(2 * sizes.parameters, CACHE))


def first_that_fits(sizes: DecoderSizes, card_gb: int, cards: int) -> tuple[Setting, MemoryEstimate] | None:
    """The fastest setting that fits; None if none does."""
    made = ((each, memory(sizes, each, cards)) for each in SETTINGS if cards > 1 or not each.sharded)
    return next(((setting, held) for setting, held in made if held.total <= RESERVE * card_gb * 1e9), None)


def settings_table() -> Iterator[str]:
    """Rows of models, columns of cards: the settings and the estimate in GB."""
    yield "| model | " + " | ".join(f"{count} x {gb} GB" if count > 1 else f"{gb} GB" for gb, count in CARDS) + " |"
    yield "| --- |" + " --- |" * len(CARDS)
    for name, sizes in MODELS.items():
        found = [first_that_fits(sizes, *card) for card in CARDS]
        cells = ["does not fit" if each is None else f"{each[0]}: {each[1].total / 1e9:.0f} GB" for each in found]
        yield f"| {name} | " + " | ".join(cells) + " |"


def parts_table() -> Iterator[str]:
    """Parts in GB on one card, checkpointing and micro-batches of 4,096 tokens, for all weights and for adapters."""
    columns = ("weights", "gradients", "optimiser", "activations", "head", "engine", "kv_cache")
    yield (
        "| model | trained | " + " | ".join(column.replace("_", " ") for column in columns) + " | sampling | updating |"
    )
    yield "| --- | --- |" + " ---: |" * (len(columns) + 2)
    for name, sizes in MODELS.items():
        for lora in (False, True):
            held = memory(sizes, Setting(lora, 4096, True), 1)
            numbers = [*(held.parts[column] for column in columns), held.sampling, held.updating]
            cells = " | ".join(f"{number / 1e9:.1f}" for number in numbers)
            yield f"| {name} | {'LoRA' if lora else 'all'} | {cells} |"


def page() -> str:
    """Both tables, as they stand in docs/gpus.md."""
    return "\n".join([*settings_table(), "", *parts_table()])


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(page())
