"""Drawing tokens from logits: pure functions, one uniform number a row and step.

A row's outcome depends on its logits and its own number alone, not on which rows stand beside it.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def prompt_seeds(seed: int, prompts: int) -> list[int]:
    """One seed a prompt, from the sampling seed and the prompt's position: independent of how prompts are batched."""
    return [int(np.random.SeedSequence([seed % 2**64, p]).generate_state(1)[0]) for p in range(prompts)]


def uniforms(seed: int, steps: int, group_size: int) -> Float[Tensor, "G M"]:
    """The random numbers of one prompt's group, in [0, 1), one a completion and step."""
    return torch.rand(group_size, steps, generator=torch.Generator().manual_seed(seed))


def keep_top(logits: Float[Tensor, "R V"], top_k: int, top_p: float) -> Float[Tensor, "R V"]:
    """Sets all but the top tokens to minus infinity: the `top_k` likeliest, of these the nucleus of mass `top_p`.

    Source: Holtzman et al. 2020, The Curious Case of Neural Text Degeneration (nucleus sampling).
    """
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1.0:
        ordered, index = logits.sort(dim=-1, descending=True)
        mass = ordered.softmax(-1)
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
    mass = keep_top(logits, top_k, top_p).softmax(-1)  # (R, V)
    cumulative = mass.cumsum(-1)
    # Scaled by the last entry, which rounding keeps off 1, and bounded so that the product stays below that entry:
    # the first entry above the target then belongs to a token of positive mass.
    target = uniform.clamp(max=1 - 2**-23)[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, target, right=True)  # (R, 1)
    return tokens.squeeze(1), mass.gather(1, tokens).log().squeeze(1)
