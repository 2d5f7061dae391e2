"""The decoding loop over groups: prefill each prompt once, then one token a row and step.

Finished rows leave the batch. There is no continuous batching: a batch is as long as its longest completion.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saerl_lightning.records import Sampling
from saerl_lightning.rollout.completion import EndTest
from saerl_lightning.rollout.draw import draw

COMPACT_BELOW = 0.75  # share of unfinished rows under which finished rows are dropped from the cache, which copies it
# Steps between two looks at how many rows are unfinished. A look waits for an accelerator, which then stands idle while
# the next step is being put in its queue; a row decoded a few steps past its end costs less.
LOOK_EVERY = {"cpu": 1}
LOOK_ELSEWHERE = 8


class Decoder(ABC):
    """The rows that are still being completed, and what is cached of them. One object, one batch of groups."""

    @abstractmethod
    def prefill(self) -> Float[Tensor, "R V"]:
        """Runs every prompt once and returns the logits of the first token of all G rows of each, prompt by prompt."""

    @abstractmethod
    def step(self, tokens: Int[Tensor, " R"]) -> Float[Tensor, "R V"]:
        """Appends one token to every row and returns the logits of the next."""

    @abstractmethod
    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Makes row i what row `rows[i]` was; the indices are in rising order."""


def complete(
    decoder: Decoder, uniform: Float[Tensor, "R M"], sampling: Sampling, ends: EndTest
) -> tuple[list[list[int]], list[list[float]], list[bool]]:
    """Completes every row of a fresh decoder.

    Args:
        decoder: holds the prompts and how many rows each gets.
        uniform: one random number a row and step, on the decoder's device.
        sampling: temperature, top_k, top_p and max_tokens.
        ends: tells which completions end with their last token.

    Returns:
        R completions, the log-probabilities of their tokens, and whether max_tokens cut them off.
    """
    tokens = torch.zeros(uniform.shape, dtype=torch.long, device=uniform.device)  # (R, M)
    logprobs = torch.zeros_like(uniform, dtype=torch.float32)  # (R, M)
    ended = torch.zeros_like(tokens, dtype=torch.bool)  # (R, M): whether the row's completion ends with this token
    rows: slice | Tensor = slice(None)  # the unfinished, and some finished: all of them, until some are dropped
    done = ended[:, 0].clone()  # over `rows`
    logits, look_every = decoder.prefill(), LOOK_EVERY.get(uniform.device.type, LOOK_ELSEWHERE)
    for step in range(sampling.max_tokens):
        chosen, logp = draw(logits, uniform[rows, step], sampling.temperature, sampling.top_k, sampling.top_p)
        # A finished row goes on writing until it is dropped; its first end says where to stop reading.
        tokens[rows, step], logprobs[rows, step] = chosen, logp
        ending = ends(tokens[rows, : step + 1])
        ended[rows, step] = ending
        done |= ending
        if step + 1 == sampling.max_tokens:
            break
        if (step + 1) % look_every == 0:
            kept = (~done).nonzero().squeeze(1)
            if len(kept) == 0:
                break
            if len(kept) < COMPACT_BELOW * len(done):
                rows = kept if isinstance(rows, slice) else rows[kept]
                done, chosen = done[kept], chosen[kept]
                decoder.keep(kept)
        logits = decoder.step(chosen)
    return _read_out(tokens, logprobs, ended)


def _read_out(
    tokens: Int[Tensor, "R M"], logprobs: Float[Tensor, "R M"], ended: Bool[Tensor, "R M"]
) -> tuple[list[list[int]], list[list[float]], list[bool]]:
    """Every row up to its first end, its log-probabilities, and whether it has none."""
    cut = ~ended.any(1)
    spans = torch.where(cut, tokens.shape[1], ended.int().argmax(1) + 1).tolist()
    return _first(tokens, spans), _first(logprobs, spans), cut.tolist()


def _first(values: Tensor, spans: list[int]) -> list[list]:
    """The first `spans[r]` entries of every row, as lists."""
    return [row[:span] for row, span in zip(values.tolist(), spans, strict=True)]
