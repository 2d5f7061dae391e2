"""Importance ratios, their clip (PPO's surrogate) and KL estimators, with means over tokens or rows. Pure functions."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Tokens = Float[Tensor, "R T"]
Rows = Float[Tensor, " R"]
LARGEST_LOG = 20.0  # of a ratio: keeps it, and what is multiplied by it, finite


def token_ratio(logprobs: Tokens, old_logprobs: Tokens) -> Tokens:
    """Computes the ratios rho = pi / pi_old of single tokens, limited to e^-20 and e^20."""
    return (logprobs - old_logprobs).clamp(-LARGEST_LOG, LARGEST_LOG).exp()


def sequence_ratio(logprobs: Tokens, old_logprobs: Tokens, mask: Bool[Tensor, "R T"], per_token: bool) -> Tokens:
    """Computes the ratio of a whole completion, repeated at each of its tokens, limited to e^-20 and e^20.

    Args:
        logprobs: Log-probabilities under the policy, with gradient.
        old_logprobs: Log-probabilities under the policy before the first update.
        mask: True at completion tokens.
        per_token: Whether the ratio is the geometric mean over tokens, exp(mean_t log rho) (GSPO, arXiv 2507.18071, eq.
            7), instead of the product.
    """
    log_ratio = ((logprobs - old_logprobs) * mask).sum(1, keepdim=True)  # (R, 1)
    if per_token:
        log_ratio = log_ratio / mask.sum(1, keepdim=True).clamp(min=1)
    return log_ratio.clamp(-LARGEST_LOG, LARGEST_LOG).exp().expand_as(logprobs)


def clipped_surrogate(
    ratio: Tokens, advantages: Rows, low: float, high: float, dual_clip: float | None = None
) -> Tokens:
    """Computes PPO's clipped objective min(rho A, clip(rho, 1 - low, 1 + high) A), to be maximised.

    Source: arXiv 1707.06347, eq. 7.

    Args:
        ratio: Ratios pi / pi_old of the tokens.
        advantages: Advantages of the rows.
        low: Distance below 1 at which the ratio is clipped.
        high: Distance above 1 at which the ratio is clipped.
        dual_clip: Bound of the objective at dual_clip * A where A < 0, so that a token that became much more likely
            can't dominate the step (dual-clip PPO, arXiv 1912.09729); null sets no bound.
    """
    a = advantages[:, None]
    gain = torch.minimum(ratio * a, ratio.clamp(1 - low, 1 + high) * a)
    return gain if dual_clip is None else torch.where(a < 0, torch.maximum(gain, dual_clip * a), gain)


def clipped(
    ratio: Tokens, advantages: Rows, low: float, high: float, dual_clip: float | None = None
) -> tuple[Tokens, Tokens]:
    """Marks (0 or 1) the tokens whose gradient the clip removes: ratio too low with A < 0, too high with A > 0.

    A token with A < 0 whose ratio is above `dual_clip` also counts as too high.
    """
    a = advantages[:, None]
    high_ones = (ratio > 1 + high) & (a > 0)
    if dual_clip is not None:
        high_ones = high_ones | ((ratio > dual_clip) & (a < 0))
    return ((ratio < 1 - low) & (a < 0)).to(ratio.dtype), high_ones.to(ratio.dtype)


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


def sampler_ratio(
    old_logprobs: Tokens, sampler_logprobs: Tokens, mask: Bool[Tensor, "R T"], sequence: bool = False
) -> Tokens:
    """Computes importance weights pi_old / pi_sampler of tokens or (`sequence`) of completions; no gradient.

    Source: importance sampling for the gap between trainer and engine, Yao et al. 2025, 'Your efficient RL framework
    secretly brings you off-policy RL training'.
    """
    log_ratio = (old_logprobs - sampler_logprobs).detach() * mask
    if sequence:
        log_ratio = log_ratio.sum(1, keepdim=True).expand_as(mask)
    return log_ratio.exp()


def outside(ratio: Tokens, floor: float | None, cap: float) -> Bool[Tensor, "R T"]:
    """Whether a weight is above `cap`, or below `floor` if there is one."""
    above = ratio > cap
    return above if floor is None else above | (ratio < floor)


Mask = Bool[Tensor, "R T"]


def row_mean(values: Tokens, mask: Mask, step_rows: float) -> Float[Tensor, ""]:
    """Mean over each row's completion tokens, then over the step's rows (GRPO): equal weight for every completion."""
    per_row = (values * mask).sum(1) / mask.sum(1).clamp(min=1)  # (R,)
    return per_row.sum() / step_rows


def token_mean(values: Tokens, mask: Mask, step_tokens: float) -> Float[Tensor, ""]:
    """Mean over all completion tokens of the step (DAPO, arXiv 2503.14476): equal weight for every token."""
    return (values * mask).sum() / step_tokens


def constant_length(values: Tokens, mask: Mask, step_rows: float, max_tokens: int) -> Float[Tensor, ""]:
    """Sum over completion tokens, divided by rows times the largest possible length (Dr. GRPO, arXiv 2503.20783).

    A token has the same weight in every completion of every step, whatever the lengths of the step's completions.
    """
    return (values * mask).sum() / (step_rows * max_tokens)
