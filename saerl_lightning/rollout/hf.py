"""HFEngine: samples with the policy's own model, in the trainer's process.

It needs only transformers, and samples exactly from the policy, with its dtype and adapters. On a GPU vLLM is much
faster: HFEngine has no paged cache, and starts no new prompts while others are running.
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
from saerl_lightning.rollout.completion import EndTest, Reader, check_lengths, end_ids, end_test, pack_rollouts
from saerl_lightning.rollout.decoding import prompt_seeds, uniforms
from saerl_lightning.rollout.engine import RolloutEngine

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from saerl_lightning.rollout.fused.weights import FusedWeights

log = logging.getLogger(__name__)


class HFEngine(RolloutEngine):
    """Samples with the policy's own model: each prompt is computed once and its cache is copied to its group.

    Args:
        max_rows: Largest number of completions that are decoded at once; bounds the memory of the key-value cache. A
            group is never split. Samples do not depend on this number.
        fused: Whether to decode with fused copies of the weights, which is faster. They need memory for a second copy
            of the layers' weights from `load_weights` to `sleep`, on a CPU also of the output head. Models that are not
            Llama-like, have adapters on bfloat16 weights, or run under autocast decode by their own forward; the log
            gives the reason.
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
        self._logits_compared = False  # whether fused weights have once given the policy's logits
        # The reason why the policy's own forward decodes; None if there is none.
        self.fallback: str | None = None
        require_in_range(self)

    @property
    def samples_by_policy(self) -> bool:
        """True: it decodes by the policy's modules, or by fused copies of their weights."""
        return True

    def start(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_model_len: int) -> None:
        """Stores the policy; nothing is copied."""
        self._model, self._tokenizer, self._max_model_len = model, tokenizer, max_model_len
        self._reader = Reader(tokenizer, end_ids(model, tokenizer))
        self._weights, self.fallback, self._logits_compared = None, None, False

    def generate(self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling) -> Rollouts:
        """Samples `sampling.group_size` completions for each prompt."""
        return Rollouts.join(list(self.stream(prompt_ids, sampling)))

    def stream(self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[Rollouts]:
        """Yields rollouts in parts of at most `max_rows` rows (but whole groups), each as soon as it is finished."""
        model, tokenizer = self._started()
        check_lengths(prompt_ids, sampling, self._max_model_len)
        ends = end_test(model, tokenizer, sampling)
        seeds = prompt_seeds(sampling, len(prompt_ids))
        prompts_a_batch = max(1, self.max_rows // sampling.group_size)
        batches = [slice(first, first + prompts_a_batch) for first in range(0, len(prompt_ids), prompts_a_batch)]
        return (self._complete_prompts(prompt_ids[batch], seeds[batch], sampling, ends) for batch in batches)

    def _complete_prompts(
        self, prompts: Sequence[Sequence[int]], seeds: list[int], sampling: Sampling, ends: EndTest
    ) -> Rollouts:
        """Completes some of the prompts in one batch."""
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
        return pack_rollouts(self._reader, prompts, *done, self._version)

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Stores the version and fuses the weights again; tensors are not read if they can't be fused."""
        self._version = version
        # The old copy is freed first, so that there are never three copies of the weights.
        self._weights = None
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
                self._weights = fuse_weights(model, named_tensors, compare_logits=not self._logits_compared)
            self._logits_compared = True
        except NotLlamaLike as reason:
            self._fall_back(str(reason))

    def _check_autocast(self, model: PreTrainedModel) -> None:
        """Switches to the policy's own forward under autocast, because fused operations would use other dtypes."""
        if self.fused and self.fallback is None and torch.is_autocast_enabled(model.device.type):
            self._fall_back("autocast is on (Lightning's mixed precision)")

    def _fall_back(self, reason: str) -> None:
        self._weights, self.fallback = None, reason
        log.warning("HFEngine decodes by the policy's own forward, not with fused weights: %s", reason)

    def sleep(self) -> None:
        """Frees the memory of the fused weights until weights are loaded again."""
        self._weights = None

    def close(self) -> None:
        """Removes the references to the policy and its weights."""
        self._model = self._tokenizer = self._reader = self._weights = None

    def _started(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        if self._model is None or self._tokenizer is None:
            raise RuntimeError("HFEngine was used before start, or after close")
        return self._model, self._tokenizer


@contextmanager
def _sampling_mode(model: PreTrainedModel) -> Iterator[None]:
    """Sets evaluation mode and decoding attention without gradients; restores every module at the end."""
    from saerl_lightning.rollout.policy_decoder import folded

    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad(), folded(model):
            yield
    finally:
        for module in training:
            module.training = True
        # Autocast caches casts of the weights. Those made here have no gradient history, so the update must make new ones.
        torch.clear_autocast_cache()
