"""Decodes groups of completions: one prefill for each prompt, then one token a row is drawn at each step.

Finished rows are removed from the batch, but no new prompts are added: a batch takes as long as its longest completion.
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

# Tokens in one block of the two-level cumulative sum: about the square root of a large vocabulary.
BLOCK = 256


def prompt_seeds(sampling: Sampling, prompts: int) -> list[int]:
    """Derives one seed a prompt from the sampling seed and the prompt's place in the batch of all processes."""
    places = range(prompts) if sampling.places is None else sampling.places
    assert len(places) == prompts, f"{prompts} prompts are sampled at {len(places)} places"
    return [int(np.random.SeedSequence([sampling.seed % 2**64, place]).generate_state(1)[0]) for place in places]


def uniforms(seed: int, steps: int, group_size: int) -> Float[Tensor, "G M"]:
    """Draws uniform random numbers in [0, 1) for one prompt's group: one for each completion and step.

    Each is a float32 number plus 24 lower bits, in float64: float32 has only 2^24 values here, which would miss most of
    the rare tokens of a large vocabulary.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse, fine = (torch.rand(group_size, steps, generator=generator).double() for _ in range(2))
    return coarse + fine * 2**-24


def keep_top(logits: Float[Tensor, "R V"], top_k: int, top_p: float) -> Float[Tensor, "R V"]:
    """Sets all logits to minus infinity except the `top_k` largest and, among these, the nucleus of mass `top_p`.

    Source: Holtzman et al. 2020, The Curious Case of Neural Text Degeneration (nucleus sampling).
    """
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1.0:
        ordered, index = logits.sort(dim=-1, descending=True)
        mass = ordered.softmax(-1, dtype=torch.float64)
        # The mass before each token is compared, so the most likely token is always kept.
        outside = mass.cumsum(-1) - mass >= top_p
        logits = logits.masked_fill(outside.scatter(-1, index, outside), -torch.inf)
    return logits


def sample_tokens(
    logits: Float[Tensor, "R V"], uniform: Float[Tensor, " R"], temperature: float, top_k: int = 0, top_p: float = 1.0
) -> tuple[Int[Tensor, " R"], Float[Tensor, " R"]]:
    """Samples one token a row by inverting the cumulative distribution.

    Args:
        logits: Unnormalised log-probabilities of the next token.
        uniform: One random number in [0, 1) a row; equal numbers and logits give equal tokens.
        temperature: Softmax temperature; 0 takes the most likely token and reports its log-probability at temperature
            1.
        top_k: Number of most likely tokens that are kept; 0 keeps all.
        top_p: Probability mass of the nucleus that is kept; 1 keeps all.

    Returns:
        The tokens, and their log-probabilities under the sampled distribution (float32).
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
    """Finds the token at which each row's cumulative mass exceeds uniform * total; also gives the total mass.

    Sums are float64 and have two levels: first the block of tokens is found, then the token in it. In float32, the
    running sum over a vocabulary of 152,000 tokens loses 0.05 % of the mass, and torch's softmax on a CPU has errors of
    up to 5e-5.

    Args:
        mass: Probabilities of the tokens, up to a constant factor in each row.
        uniform: One random number in [0, 1) a row.
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
    """Finds the entry in which a given share of each row's mass lies, and the share's position within that entry."""
    cumulative = mass.cumsum(1)
    # Rounding could make the product equal the whole mass; the search would then run past the last entry that has mass.
    height = target.clamp(max=1 - 2**-52)[:, None] * cumulative[:, -1:]
    found = torch.searchsorted(cumulative, height, right=True)  # (R, 1)
    own = mass.gather(1, found)
    below = cumulative.gather(1, found) - own
    return found.squeeze(1), ((height - below) / own).clamp(0).squeeze(1)


# Finished rows are removed when the share of unfinished rows falls below this. Removing rows copies the cache.
COMPACT_BELOW = 0.75
# Steps between two counts of the unfinished rows. A count must wait for the accelerator, which is then idle until the next
# step is queued; decoding a finished row for a few more steps costs less.
LOOK_EVERY = {"cpu": 1}
LOOK_ELSEWHERE = 8


class Decoder(ABC):
    """The unfinished rows of one batch of groups, with their cache. An object decodes one batch."""

    @abstractmethod
    def prefill(self) -> Float[Tensor, "R V"]:
        """Computes every prompt once; returns the first token's logits for all G rows of each prompt, in order."""

    @abstractmethod
    def step(self, tokens: Int[Tensor, " R"]) -> Float[Tensor, "R V"]:
        """Appends one token to every row and returns the logits of the next token."""

    @abstractmethod
    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Keeps only the given rows: row i becomes the present row `rows[i]`. Indices are in rising order."""


def complete(
    decoder: Decoder, uniform: Float[Tensor, "R M"], sampling: Sampling, ends: EndTest
) -> tuple[list[list[int]], list[list[float]], list[bool]]:
    """Completes every row of a new decoder.

    Args:
        decoder: Decoder that holds the prompts and the number of rows of each.
        uniform: One random number a row and step, on the decoder's device.
        sampling: Settings of which temperature, top_k, top_p and max_tokens are used.
        ends: Test of whether completions end with their last token.

    Returns:
        R completions, the log-probabilities of their tokens, and whether max_tokens cut them off.
    """
    tokens = torch.zeros(uniform.shape, dtype=torch.long, device=uniform.device)  # (R, M)
    logprobs = torch.zeros_like(uniform, dtype=torch.float32)  # (R, M)
    ended = torch.zeros_like(tokens, dtype=torch.bool)  # (R, M): whether the row's completion ends with this token
    # Rows that are still decoded: all of them at first, later the unfinished and a few finished ones.
    rows: slice | Tensor = slice(None)
    done = ended[:, 0].clone()  # of `rows`
    logits, look_every = decoder.prefill(), LOOK_EVERY.get(uniform.device.type, LOOK_ELSEWHERE)
    for step in range(sampling.max_tokens):
        chosen, logp = sample_tokens(logits, uniform[rows, step], sampling.temperature, sampling.top_k, sampling.top_p)
        # Finished rows are decoded until they are removed; their tokens after the first end are cut off in `_read_out`.
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
    """Cuts every row after its first end; returns tokens, log-probabilities, and whether a row has no end."""
    cut = ~ended.any(1)
    spans = torch.where(cut, tokens.shape[1], ended.int().argmax(1) + 1).tolist()
    return _first(tokens, spans), _first(logprobs, spans), cut.tolist()


def _first(values: Tensor, spans: list[int]) -> list[list]:
    """The first `spans[r]` entries of every row, as lists."""
    return [row[:span] for row, span in zip(values.tolist(), spans, strict=True)]
