"""Drawing tokens from logits: pure functions, one uniform number a row and step.

A row's outcome depends on its logits and its own number alone, not on which rows stand beside it.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

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
