"""ScriptedEngine: returns completions from a list instead of sampling, for tests and documentation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saerl_lightning.errors import InputError
from saerl_lightning.policy.logprobs import score
from saerl_lightning.policy.weights import with_whole_weights
from saerl_lightning.records import Rollouts, Sampling
from saerl_lightning.rollout.completion import Reader, check_lengths, end_ids, pack_rollouts
from saerl_lightning.rollout.engine import RolloutEngine

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ScriptedEngine(RolloutEngine):
    """Returns the given texts in order, whatever the prompt; each call starts again with the first text.

    Log-probabilities are those of the policy at the sampling temperature. Temperature, top_p, top_k, seed and stop do
    not change the texts.

    Args:
        completions: Texts to return; completion g of the prompt at place p of the batch is text p G + g modulo their
            number, followed by an end-of-text token.
    """

    def __init__(self, completions: list[str]) -> None:
        self.completions = completions
        self._model: PreTrainedModel | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._reader: Reader | None = None
        self._max_model_len = 0
        self._version = 0

    def start(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_model_len: int) -> None:
        """Stores the policy, which scores the texts."""
        if not self.completions:
            raise InputError("ScriptedEngine has no completions to give; write at least one text")
        self._model, self._tokenizer, self._max_model_len = model, tokenizer, max_model_len
        self._reader = Reader(tokenizer, end_ids(model, tokenizer))

    def generate(self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling) -> Rollouts:
        """Returns `sampling.group_size` completions for each prompt, cut at `sampling.max_tokens`."""
        if self._model is None or self._reader is None:
            raise RuntimeError("ScriptedEngine.generate was called before start, or after close")
        check_lengths(prompt_ids, sampling, self._max_model_len)
        script, group = [self._encode(text) for text in self.completions], range(sampling.group_size)
        places = range(len(prompt_ids)) if sampling.places is None else sampling.places
        whole = [script[(place * len(group) + g) % len(script)] for place in places for g in group]
        completions = [c[: sampling.max_tokens] for c in whole]
        truncated = [len(c) > sampling.max_tokens for c in whole]
        unscored = [[0.0] * len(c) for c in completions]
        rollouts = pack_rollouts(self._reader, prompt_ids, completions, unscored, truncated, self._version)
        return _with_logprobs(self._model, rollouts, sampling.temperature)

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Stores the version; the texts do not change."""
        self._version = version

    def close(self) -> None:
        """Removes the references to the policy."""
        self._model = self._tokenizer = self._reader = None

    def _encode(self, text: str) -> list[int]:
        """Encodes a text and appends the end-of-text token."""
        assert self._model is not None and self._tokenizer is not None
        own = self._tokenizer.eos_token_id
        end = own if isinstance(own, int) else end_ids(self._model, self._tokenizer)[0]
        return [*self._tokenizer.encode(text, add_special_tokens=False), end]


@torch.no_grad()
def _with_logprobs(model: PreTrainedModel, rollouts: Rollouts, temperature: float) -> Rollouts:
    """Returns the rollouts with log-probabilities under the model."""
    tokens, own = rollouts.tokens.to(model.device), rollouts.own.to(model.device)
    logprobs, _ = with_whole_weights(model, score, model, tokens, own, temperature)
    return replace(rollouts, logprobs=logprobs.cpu())
