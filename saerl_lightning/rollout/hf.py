"""HFEngine: the policy samples from itself, in the trainer's process, with no second copy of the weights.

It needs nothing but transformers and follows the policy exactly, dtype and adapters included; it is no match for vLLM
on a GPU, because it neither pages its cache nor admits new prompts while old ones are running.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saerl_lightning.records import Rollouts, Sampling
from saerl_lightning.rollout.completion import check_lengths, end_test, lay_out
from saerl_lightning.rollout.draw import prompt_seeds, uniforms
from saerl_lightning.rollout.engine import RolloutEngine

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class HFEngine(RolloutEngine):
    """Samples with the policy itself: each prompt is prefilled once, its cache shared out to the group.

    Args:
        max_rows: most completions decoded at a time; bounds the memory of the key-value cache. A group is never split.
            The samples do not depend on it.
    """

    def __init__(self, max_rows: int = 256) -> None:
        self.max_rows = max_rows
        self._model: PreTrainedModel | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._max_model_len = 0
        self._version = 0

    def start(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_model_len: int) -> None:
        """Remembers the policy; nothing is copied."""
        self._model, self._tokenizer, self._max_model_len = model, tokenizer, max_model_len

    def generate(self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling) -> Rollouts:
        """Draws `sampling.group_size` completions for each prompt."""
        from saerl_lightning.rollout.decoding import complete

        model, tokenizer = self._started()
        check_lengths(prompt_ids, sampling, self._max_model_len)
        ends = end_test(model, tokenizer, sampling)
        seeds = prompt_seeds(sampling.seed, len(prompt_ids))
        prompts_a_time = max(1, self.max_rows // sampling.group_size)
        completions, logprobs, truncated = [], [], []
        with _sampling_mode(model):
            for first in range(0, len(prompt_ids), prompts_a_time):
                some = slice(first, first + prompts_a_time)
                numbers = torch.cat([uniforms(s, sampling.max_tokens, sampling.group_size) for s in seeds[some]])
                done = complete(model, prompt_ids[some], numbers.to(model.device), sampling, ends)
                for every, new in zip((completions, logprobs, truncated), done, strict=True):
                    every.extend(new)
        return lay_out(tokenizer, prompt_ids, completions, logprobs, truncated, self._version)

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Notes the version; the sampled weights are the policy's own, so the tensors are not even looked at."""
        self._version = version

    def close(self) -> None:
        """Lets the policy go."""
        self._model = self._tokenizer = None

    def _started(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        if self._model is None or self._tokenizer is None:
            raise RuntimeError("HFEngine.generate was called before start, or after close")
        return self._model, self._tokenizer


@contextmanager
def _sampling_mode(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode and decoding attention without gradients; leaves every module as it was."""
    from saerl_lightning.rollout.attention import folded

    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad(), folded(model):
            yield
    finally:
        for module in training:
            module.training = True
        # Under autocast the casts of the weights made here carry no gradient history; the update must make its own.
        torch.clear_autocast_cache()
