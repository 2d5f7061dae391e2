"""The per-token terms of policy-gradient losses, all elementwise; `aggregation` averages them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Tokens = Float[Tensor, "R T"]


def clipped_surrogate(ratio: Tokens, advantages: Float[Tensor, " R"], low: float, high: float) -> Tokens:
    """PPO's clipped objective min(rho A, clip(rho, 1 - low, 1 + high) A), to be maximised (arXiv 1707.06347, eq. 7)."""
    a = advantages[:, None]
    return torch.minimum(ratio * a, ratio.clamp(1 - low, 1 + high) * a)


def clipped(
    ratio: Tokens, advantages: Float[Tensor, " R"], low: float, high: float
) -> tuple[Float[Tensor, "R T"], Float[Tensor, "R T"]]:
    """Indicators (0 or 1) of the tokens whose gradient the clip removes: too low with A < 0, too high with A > 0."""
    a = advantages[:, None]
    return ((ratio < 1 - low) & (a < 0)).to(ratio.dtype), ((ratio > 1 + high) & (a > 0)).to(ratio.dtype)


def kl_k1(logprobs: Tokens, reference: Tokens) -> Tokens:
    """Unbiased, high-variance estimate of KL(policy || reference): log pi - log ref (Schulman, 'Approximating KL')."""
    return logprobs - reference


def kl_k2(logprobs: Tokens, reference: Tokens) -> Tokens:
    """Low-variance, biased estimate (log pi - log ref)^2 / 2; its gradient is that of the KL (Schulman)."""
    return (logprobs - reference).square() / 2


def kl_k3(logprobs: Tokens, reference: Tokens) -> Tokens:
    """Unbiased, non-negative estimate ref/pi - 1 - log(ref/pi) (Schulman; GRPO, arXiv 2402.03300, eq. 4)."""
    delta = reference - logprobs
    return delta.exp() - 1 - delta


def truncated_importance(old_logprobs: Tokens, sampler_logprobs: Tokens, cap: float) -> Tokens:
    """Token weights min(pi_old / pi_sampler, cap) that correct for a sampler that is not quite the policy, no gradient.

    Source: truncated importance sampling, Ionides 2008; Yao et al. 2025, 'Your efficient RL framework secretly brings
    you off-policy RL training'.
    """
    return (old_logprobs - sampler_logprobs).detach().exp().clamp(max=cap)
