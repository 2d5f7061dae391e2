"""Reads the hidden states of prompts in batches that share prefixes, and pools each batch at once.

Only one batch of hidden states is in memory. The caller gives the function that pools it (SAE codes, or dense rows).
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saerl_lightning.errors import InputError
from saerl_lightning.hf_attention import relative_distance, why_not_replaced
from saerl_lightning.progress import Bar
from saerl_lightning.records import Prompt
from saerl_lightning.signals import prefix_tree
from saerl_lightning.signals.model import ReadModel, encode, residual_stream
from saerl_lightning.signals.prefix_tree import Tokens, attends_trees, tree_spans
from saerl_lightning.signals.source import Features, Part

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


log = logging.getLogger(__name__)

STRETCH = 65_536  # prompts that are tokenized, and share prefixes, at a time
# Token ids for the comparison of both forwards: three short prompts that share prefixes.
PROBE = ([3, 4, 5, 6, 7, 8, 9, 10], [3, 4, 5, 6, 11, 12], [3, 4, 13, 14, 15])


@dataclass(frozen=True)
class ResidualStream:
    """The residual stream of some prompts."""

    hidden: Float[Tensor, "n d"]
    paths: tuple[Int[np.ndarray, " _"], ...]  # P, rows of `hidden` for each prompt's tokens, in order


class Forward(ABC):
    """Runs a truncated decoder on token lists.

    Args:
        decoder: Decoder cut by `truncate`.
    """

    def __init__(self, decoder: PreTrainedModel) -> None:
        self.decoder = decoder

    @abstractmethod
    def batches(self, prompts: Sequence[Tokens], budget: int) -> list[list[int]]:
        """Splits prompts into batches of about `budget` tokens. Returns positions in `prompts`, each exactly once."""

    @abstractmethod
    def __call__(self, prompts: Sequence[Tokens]) -> ResidualStream:
        """Computes the residual stream of one batch."""


class TreeForward(Forward):
    """Computes each distinct prefix once, in one packed row with attention along the trie."""

    def batches(self, prompts: Sequence[Tokens], budget: int) -> list[list[int]]:
        """Splits prompts into tries of at most `budget` nodes."""
        return prefix_tree.batches(prompts, budget)

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[Tokens]) -> ResidualStream:
        """Computes the residual stream of one batch. Each row of the result is a node of the trie."""
        packed = prefix_tree.build(prompts)
        if not len(packed):
            return ResidualStream(torch.zeros(0, self.decoder.config.hidden_size), packed.paths)
        tokens, depth = (torch.from_numpy(x)[None].to(self.decoder.device) for x in (packed.tokens, packed.depth))
        with attends_trees(self.decoder):
            out = self.decoder(
                input_ids=tokens, position_ids=depth, use_cache=False, tree=tree_spans(packed, self.decoder)
            )
        return ResidualStream(out.last_hidden_state[0], packed.paths)


class PaddedForward(Forward):
    """Computes each prompt in a right-padded row of its own. Prompts of similar length share a batch."""

    def batches(self, prompts: Sequence[Tokens], budget: int) -> list[list[int]]:
        """Splits prompts into batches of at most `budget` positions, with padding."""
        parts: list[list[int]] = []
        for index in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
            if not parts or (len(parts[-1]) + 1) * len(prompts[index]) > budget:
                parts.append([])
            parts[-1].append(index)
        return parts

    def __call__(self, prompts: Sequence[Tokens]) -> ResidualStream:
        """Computes the residual stream of one batch. Each row of the result is a position; padding belongs to no prompt."""
        longest = max(map(len, prompts), default=0)
        starts = range(0, len(prompts) * longest, longest or 1)
        paths = tuple(np.arange(start, start + len(p)) for start, p in zip(starts, prompts, strict=False))
        if not longest:
            return ResidualStream(torch.zeros(0, self.decoder.config.hidden_size), (np.arange(0),) * len(prompts))
        tokens = torch.zeros(len(prompts), longest, dtype=torch.long)  # (P, T)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt, dtype=torch.long)
        mask = torch.arange(longest) < torch.tensor([len(p) for p in prompts])[:, None]
        device = self.decoder.device
        return ResidualStream(residual_stream(self.decoder, tokens.to(device), mask.to(device)).flatten(0, 1), paths)


def suited_forward(decoder: PreTrainedModel, max_tokens: int) -> Forward:
    """Chooses the tree forward if it is correct for this decoder, else padded rows, and logs the reason.

    Args:
        decoder: Decoder cut by `truncate`.
        max_tokens: Length of the longest prompt that will be read.
    """
    reason = why_no_tree(decoder, max_tokens)
    if reason is None:
        return TreeForward(decoder)
    log.warning("shared prefixes are computed again for every prompt: %s", reason)
    return PaddedForward(decoder)


def why_no_tree(decoder: PreTrainedModel, max_tokens: int) -> str | None:
    """Returns why the tree forward would differ from padded rows for this decoder; None if it does not.

    Attention windows are read from the configuration, because short prompts don't show them. Everything else (soft
    caps, sinks, recurrent layers, position biases) shows when both forwards are compared on three short prompts.
    """
    padded, tree = PaddedForward(decoder), TreeForward(decoder)

    def error() -> float:
        packed = tree(PROBE)
        apart = [(packed.hidden[packed.paths[i]], padded([prompt]).hidden) for i, prompt in enumerate(PROBE)]
        return max(relative_distance(ours, theirs) for ours, theirs in apart)

    return why_not_replaced(decoder, max_tokens, "tree attention", error)


class PromptReader:
    """Yields the pooled rows of prompts, batch by batch. The model is loaded with the first prompts.

    Args:
        model: Model that reads the prompts.
        pool: Function that makes rows from the residual stream of one batch.
        token_budget: Number of distinct tokens in a batch.
        max_tokens: Maximum number of tokens per prompt. Longer prompts are cut.
    """

    def __init__(
        self, model: ReadModel, pool: Callable[[ResidualStream], Features], token_budget: int, max_tokens: int
    ) -> None:
        self.model = model
        self.pool = pool
        self.token_budget = token_budget
        self.max_tokens = max_tokens
        self._loaded: tuple[Forward, PreTrainedTokenizerBase] | None = None

    def __call__(self, prompts: Sequence[Prompt]) -> Iterator[Part]:
        """Reads prompts. Only one stretch of them is tokenized at a time, so that a pool may have millions.

        Raises:
            InputError: if a row contains NaN or infinity; the message names the prompt.
        """
        for start in range(0, len(prompts), STRETCH):
            for positions, rows in self._stretch(prompts[start : start + STRETCH]):
                yield positions + start, rows

    def _stretch(self, prompts: Sequence[Prompt]) -> Iterator[Part]:
        if self._loaded is None:
            decoder, tokenizer = self.model.load()
            self._loaded = suited_forward(decoder, self.max_tokens), tokenizer
        forward, tokenizer = self._loaded
        ids = encode(prompts, tokenizer, self.max_tokens)
        for positions, rows in pooled_parts(forward, ids, self.pool, self.token_budget):
            if not is_finite(rows):
                # NaN spreads to other prompts of the batch (0 * NaN under the mask), so each prompt is read again alone.
                bad = [prompts[i].uid for i in positions if not is_finite(self.pool(forward([ids[i]])))]
                raise InputError(
                    f"the features of prompt {bad[0]!r} are NaN or infinite ({len(bad)} of the {len(positions)} prompts in "
                    f"its batch); read with `dtype: float32`, check the weights of model and SAE, or take the prompt out"
                )
            yield positions, rows


def pooled_parts(
    forward: Forward, ids: Sequence[Tokens], pool: Callable[[ResidualStream], Features], token_budget: int
) -> Iterator[Part]:
    """Yields the pooled rows of token lists, batch by batch, with a progress bar in tokens (on rank 0)."""
    total = sum(map(len, ids))
    with Bar(total=total, unit="token", desc="signals", disable=_rank() != 0) as bar:
        for batch in forward.batches(ids, token_budget):
            tokens = [ids[i] for i in batch]
            yield np.array(batch, dtype=np.int64), pool(forward(tokens))
            bar.update(sum(map(len, tokens)))


def is_finite(rows: Features) -> bool:
    """Whether all entries are finite."""
    return bool(np.isfinite(rows if isinstance(rows, np.ndarray) else rows.data).all())


def _rank() -> int:
    return (
        torch.distributed.get_rank() if torch.distributed.is_available() and torch.distributed.is_initialized() else 0
    )
