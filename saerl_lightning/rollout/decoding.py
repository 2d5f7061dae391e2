"""The decoding loop over groups: prefill each prompt once, then one token a row and step.

Finished rows leave the batch. There is no continuous batching: a batch is as long as its longest completion.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from saerl_lightning.records import Sampling
from saerl_lightning.rollout.completion import EndTest

BLOCK = 256  # tokens whose mass is summed before the vocabulary's: the square root of large ones, about


def prompt_seeds(seed: int, prompts: int) -> list[int]:
    """One seed a prompt, from the sampling seed and the prompt's position: independent of how prompts are batched."""
    return [int(np.random.SeedSequence([seed % 2**64, p]).generate_state(1)[0]) for p in range(prompts)]


def uniforms(seed: int, steps: int, group_size: int) -> Float[Tensor, "G M"]:
    """The random numbers of one prompt's group, in [0, 1), one a completion and step.

    Each is a float32 and, in float64, 24 bits below it: the 2^24 numbers of float32 alone would pass over most tokens of a
    vocabulary's long tail.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse, fine = (torch.rand(group_size, steps, generator=generator).double() for _ in range(2))
    return coarse + fine * 2**-24


def keep_top(logits: Float[Tensor, "R V"], top_k: int, top_p: float) -> Float[Tensor, "R V"]:
    """Sets all but the top tokens to minus infinity: the `top_k` likeliest, of these the nucleus of mass `top_p`.

    Source: Holtzman et al. 2020, The Curious Case of Neural Text Degeneration (nucleus sampling).
    """
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1.0:
        ordered, index = logits.sort(dim=-1, descending=True)
        mass = ordered.softmax(-1, dtype=torch.float64)
        outside = mass.cumsum(-1) - mass >= top_p  # mass before the token; the likeliest is always kept
        logits = logits.masked_fill(outside.scatter(-1, index, outside), -torch.inf)
    return logits


def draw(
    logits: Float[Tensor, "R V"], uniform: Float[Tensor, " R"], temperature: float, top_k: int = 0, top_p: float = 1.0
) -> tuple[Int[Tensor, " R"], Float[Tensor, " R"]]:
    """Draws one token a row by inverting the cumulative distribution.

    Args:
        logits: unnormalised log-probabilities.
        uniform: one number in [0, 1) a row; the same number over the same logits draws the same token.
        temperature: softmax temperature; 0 takes the likeliest token and reports it at temperature 1.
        top_k: most likely tokens kept; 0 keeps all.
        top_p: nucleus mass kept; 1 keeps all.

    Returns:
        The tokens, and their log-probabilities in the distribution they were drawn from (float32).
    """
    logits = logits.float()
    if temperature == 0:
        top, tokens = logits.max(-1)
        return tokens, top - logits.logsumexp(-1)
    if temperature != 1.0:
        logits = logits / temperature
    logits = keep_top(logits, top_k, top_p)
    above = logits - logits.amax(1, keepdim=True)  # (R, V)
    tokens, total = invert(above.exp(), uniform)
    return tokens, above.gather(1, tokens[:, None]).squeeze(1) - total.log().float()


def invert(mass: Float[Tensor, "R V"], uniform: Float[Tensor, " R"]) -> tuple[Int[Tensor, " R"], Float[Tensor, " R"]]:
    """The token at which each row's cumulative mass passes its number, and the row's whole mass (float64).

    Summed in float64, in two storeys: first the block is found, then the token in it. In float32 the running sum of a
    vocabulary of 152,000 loses .05 % of the mass, and torch's softmax on a CPU gives up to 5e-5 too much.

    Args:
        mass: of the tokens, up to a factor for each row.
        uniform: one number in [0, 1) a row.
    """
    blocks = pad(mass, (0, -mass.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))  # (R, B, BLOCK)
    sums = blocks.sum(2, dtype=torch.float64)
    block, rest = _first_above(sums, uniform.double())
    inside = blocks.gather(1, block[:, None, None].expand(-1, 1, BLOCK)).squeeze(1).double()
    place, _ = _first_above(inside, rest)
    return block * BLOCK + place, sums.sum(1)


def _first_above(
    mass: Float[Tensor, "R n"], target: Float[Tensor, " R"]
) -> tuple[Int[Tensor, " R"], Float[Tensor, " R"]]:
    """The entry in which a share of each row's mass falls, and which share of that entry's own mass lies below it."""
    cumulative = mass.cumsum(1)
    # Bounded so that the product stays below the last entry: the first above it then has a mass.
    height = target.clamp(max=1 - 2**-52)[:, None] * cumulative[:, -1:]
    found = torch.searchsorted(cumulative, height, right=True)  # (R, 1)
    own = mass.gather(1, found)
    below = cumulative.gather(1, found) - own
    return found.squeeze(1), ((height - below) / own).clamp(0).squeeze(1)


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
