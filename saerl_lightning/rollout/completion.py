"""What all engines agree on: where a completion ends, how it is laid out, and what fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from saerl_lightning.errors import InputError
from saerl_lightning.records import Rollouts, Sampling
from saerl_lightning.rollout.reading import Reader, decode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EndTest = Callable[[Int[Tensor, "R t"]], Bool[Tensor, " R"]]  # completions so far -> whether the last token ends them


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids that end a completion: those of the model's generation config and the tokenizer's own."""
    generation = getattr(model, "generation_config", None)
    configured = getattr(generation, "eos_token_id", None)
    several = configured if isinstance(configured, list) else [configured]
    ids = {i for i in [*several, tokenizer.eos_token_id] if i is not None}
    if not ids:
        raise InputError(
            f"neither the tokenizer nor the generation config of {model.name_or_path} names an end-of-text token; "
            "write `eos_token` in its tokenizer_config.json"
        )
    return sorted(ids)


def lay_out(
    reader: Reader,
    prompt_ids: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    logprobs: Sequence[Sequence[float]],
    truncated: Sequence[bool],
    version: int,
) -> Rollouts:
    """Packs the completions of equal groups, with their texts, as padded rows."""
    texts, group_size = reader.texts(prompt_ids, completions), len(completions) // len(prompt_ids)
    return Rollouts.pack(prompt_ids, completions, logprobs, truncated, texts, group_size, version, reader.pad)


def ends_in_stop(tokenizer: PreTrainedTokenizerBase, completion: Sequence[int], stop: Sequence[str]) -> bool:
    """Whether one of the stop texts stands at the end of the completion.

    Only as many tokens are read as the longest stop text can span: a token carries a byte at least, and the last one
    may carry more text behind the stop.
    """
    span = max(len(text.encode()) for text in stop) + 1
    tail = decode(tokenizer, [list(completion[-span:])])[0]
    return any(text in tail for text in stop)


def end_test(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sampling: Sampling) -> EndTest:
    """The test of whether completions end with their last token: at an end-of-text token or a stop text."""
    ids = torch.tensor(end_ids(model, tokenizer), device=model.device)

    def ends(so_far: Int[Tensor, "R t"]) -> Bool[Tensor, " R"]:
        ended = torch.isin(so_far[:, -1], ids)
        if sampling.stop:
            stops = [ends_in_stop(tokenizer, row, sampling.stop) for row in so_far.tolist()]
            ended |= torch.tensor(stops, device=ended.device)
        return ended

    return ends


def check_lengths(prompt_ids: Sequence[Sequence[int]], sampling: Sampling, max_model_len: int) -> None:
    """Refuses prompts that are empty, or that leave no room for the completion.

    Raises:
        InputError: if a prompt is empty, or prompt plus `max_tokens` is longer than `max_model_len`.
    """
    if not prompt_ids:
        raise InputError("there are no prompts to complete; give at least one")
    shortest, longest = min(map(len, prompt_ids)), max(map(len, prompt_ids))
    if shortest == 0:
        raise InputError("a prompt has no tokens; give every prompt at least one")
    if longest + sampling.max_tokens > max_model_len:
        raise InputError(
            f"a prompt of {longest} tokens and max_tokens {sampling.max_tokens} exceed the engine's {max_model_len} "
            "tokens; lower max_tokens, drop long prompts, or raise the maximal model length"
        )
