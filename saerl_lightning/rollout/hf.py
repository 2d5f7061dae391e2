"""HFEngine: the policy samples from itself, in the trainer's process.

It needs nothing but transformers and follows the policy exactly, dtype and adapters included; it is no match for vLLM
on a GPU, because it neither pages its cache nor admits new prompts while old ones are running.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saerl_lightning.ranges import Count, require_in_range
from saerl_lightning.records import Rollouts, Sampling
from saerl_lightning.rollout.completion import EndTest, Reader, check_lengths, end_ids, end_test, lay_out
from saerl_lightning.rollout.decoding import prompt_seeds, uniforms
from saerl_lightning.rollout.engine import RolloutEngine

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from saerl_lightning.rollout.fused.weights import FusedWeights

log = logging.getLogger(__name__)


class HFEngine(RolloutEngine):
    """Samples with the policy itself: each prompt is prefilled once, its cache shared out to the group.

    Args:
        max_rows: most completions decoded at a time; bounds the memory of the key-value cache. A group is never split.
            The samples do not depend on it.
        fused: decode with fused copies of the weights, made by `load_weights`: faster, costs a second copy of the
            layers' weights between `load_weights` and `sleep` (on a CPU also of the output head). A model that isn't
            Llama-like, has adapters on bfloat16 weights, or is under autocast decodes by its own forward; the log says why.
    """

    def __init__(self, max_rows: Count = 256, fused: bool = True) -> None:
        self.max_rows = max_rows
        self.fused = fused
        self._model: PreTrainedModel | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._reader: Reader | None = None
        self._max_model_len = 0
        self._version = 0
        self._weights: FusedWeights | None = None
        self._tried = False  # whether fused weights gave the policy's logits once
        self.fallback: str | None = (
            None  # why the policy's own forward decodes; null where nothing speaks against fusing
        )
        require_in_range(self)

    def start(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_model_len: int) -> None:
        """Remembers the policy; nothing is copied."""
        self._model, self._tokenizer, self._max_model_len = model, tokenizer, max_model_len
        self._reader = Reader(tokenizer, end_ids(model, tokenizer))
        self._weights, self.fallback, self._tried = None, None, False

    def generate(self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling) -> Rollouts:
        """Draws `sampling.group_size` completions for each prompt."""
        return Rollouts.join(list(self.stream(prompt_ids, sampling)))

    def stream(self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[Rollouts]:
        """Yields the rollouts in parts of `max_rows` rows, each as soon as it is finished; one part if all rows fit."""
        model, tokenizer = self._started()
        check_lengths(prompt_ids, sampling, self._max_model_len)
        ends = end_test(model, tokenizer, sampling)
        seeds = prompt_seeds(sampling.seed, len(prompt_ids))
        prompts_a_part = max(1, self.max_rows // sampling.group_size)
        parts = [slice(first, first + prompts_a_part) for first in range(0, len(prompt_ids), prompts_a_part)]
        return (self._part(prompt_ids[part], seeds[part], sampling, ends) for part in parts)

    def _part(self, prompts: Sequence[Sequence[int]], seeds: list[int], sampling: Sampling, ends: EndTest) -> Rollouts:
        """Completes some prompts in one batch."""
        from saerl_lightning.rollout.decoding import complete
        from saerl_lightning.rollout.fused.decoder import FusedDecoder
        from saerl_lightning.rollout.policy_decoder import PolicyDecoder

        model, _ = self._started()
        numbers = torch.cat([uniforms(seed, sampling.max_tokens, sampling.group_size) for seed in seeds])
        numbers = numbers.to(model.device)
        size = sampling.group_size, sampling.max_tokens
        self._check_autocast(model)
        if self._weights is not None:
            with torch.inference_mode():
                done = complete(FusedDecoder(model, self._weights, prompts, *size), numbers, sampling, ends)
        else:
            with _sampling_mode(model):
                done = complete(PolicyDecoder(model, prompts, *size), numbers, sampling, ends)
        assert self._reader is not None
        return lay_out(self._reader, prompts, *done, self._version)

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Notes the version and fuses the weights anew; where they can't be fused, the tensors are not looked at."""
        self._version = version
        self._weights = None  # first, so that there are never three copies
        model, _ = self._started()
        self._check_autocast(model)
        if self.fused and self.fallback is None and hasattr(model, "peft_config") and model.dtype != torch.float32:
            self._fall_back(
                f"adapters merged into {str(model.dtype).removeprefix('torch.')} weights lose their last bits"
            )
        if not self.fused or self.fallback is not None:
            return
        from saerl_lightning.rollout.fused.decoder import fuse_weights
        from saerl_lightning.rollout.fused.weights import NotLlamaLike

        try:
            with _sampling_mode(model):
                self._weights = fuse_weights(model, named_tensors, to_try=not self._tried)
            self._tried = True
        except NotLlamaLike as reason:
            self._fall_back(str(reason))

    def _check_autocast(self, model: PreTrainedModel) -> None:
        """Under autocast the policy's own forward decodes: which operation computes in which dtype is autocast's affair."""
        if self.fused and self.fallback is None and torch.is_autocast_enabled(model.device.type):
            self._fall_back("autocast is on (Lightning's mixed precision)")

    def _fall_back(self, reason: str) -> None:
        self._weights, self.fallback = None, reason
        log.warning("HFEngine decodes by the policy's own forward, not with fused weights: %s", reason)

    def sleep(self) -> None:
        """Gives the memory of the fused weights back until weights are loaded again."""
        self._weights = None

    def close(self) -> None:
        """Lets the policy go."""
        self._model = self._tokenizer = self._reader = self._weights = None

    def _started(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        if self._model is None or self._tokenizer is None:
            raise RuntimeError("HFEngine was used before start, or after close")
        return self._model, self._tokenizer


@contextmanager
def _sampling_mode(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode and decoding attention without gradients; leaves every module as it was."""
    from saerl_lightning.rollout.policy_decoder import folded

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
