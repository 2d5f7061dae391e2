"""Per-token ratios, clipped surrogates and KL estimators, averaged over tokens or rows."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Tokens = Float[Tensor, "R T"]
Rows = Float[Tensor, " R"]
LARGEST_LOG = 20.0  # of a ratio: keeps it, and what is multiplied by it, finite


def token_ratio(logprobs: Tokens, old_logprobs: Tokens) -> Tokens:
    """Ratios rho = pi / pi_old of single tokens, between e^-20 and e^20."""
    return (logprobs - old_logprobs).clamp(-LARGEST_LOG, LARGEST_LOG).exp()


def sequence_ratio(logprobs: Tokens, old_logprobs: Tokens, mask: Bool[Tensor, "R T"], per_token: bool) -> Tokens:
    """The ratio of a whole completion, the same at each of its tokens, between e^-20 and e^20.

    Args:
        logprobs: under the policy, with gradient.
        old_logprobs: under the policy before the first update.
        mask: completion tokens.
        per_token: take the geometric mean of the tokens' ratios, exp(mean_t log rho) (GSPO, arXiv 2507.18071, eq. 7);
            off takes their product.
    """
    log_ratio = ((logprobs - old_logprobs) * mask).sum(1, keepdim=True)  # (R, 1)
    if per_token:
        log_ratio = log_ratio / mask.sum(1, keepdim=True).clamp(min=1)
    return log_ratio.clamp(-LARGEST_LOG, LARGEST_LOG).exp().expand_as(logprobs)


def clipped_surrogate(
    ratio: Tokens, advantages: Rows, low: float, high: float, dual_clip: float | None = None
) -> Tokens:
    """PPO's clipped objective min(rho A, clip(rho, 1 - low, 1 + high) A), to be maximised (arXiv 1707.06347, eq. 7).

    Args:
        ratio: pi / pi_old.
        advantages: of the rows.
        low: the ratio is clipped below 1 - low.
        high: and above 1 + high.
        dual_clip: where A < 0 the objective is not below dual_clip * A, so that a token that became much likelier cannot
            dominate the step (dual-clip PPO, arXiv 1912.09729); none leaves it unbounded.
    """
    a = advantages[:, None]
    gain = torch.minimum(ratio * a, ratio.clamp(1 - low, 1 + high) * a)
    return gain if dual_clip is None else torch.where(a < 0, torch.maximum(gain, dual_clip * a), gain)


def clipped(
    ratio: Tokens, advantages: Rows, low: float, high: float, dual_clip: float | None = None
) -> tuple[Tokens, Tokens]:
    """Indicators (0 or 1) of the tokens whose gradient the clip removes: too low with A < 0, too high with A > 0.

    Too high are also those with A < 0 whose ratio is above `dual_clip`.
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
    """Importance weights pi_old / pi_sampler, of single tokens or (`sequence`) of whole completions; no gradient.

    Source: importance sampling for the gap between trainer and engine, Yao et al. 2025, 'Your efficient RL framework
        secretly brings you off-policy RL training'.
    """
    log_ratio = (old_logprobs - sampler_logprobs).detach() * mask
    if sequence:
        log_ratio = log_ratio.sum(1, keepdim=True).expand_as(mask)
    return log_ratio.exp()


def outside(ratio: Tokens, floor: float | None, cap: float) -> Bool[Tensor, "R T"]:
    """Whether a weight lies above `cap`, or below `floor` where there is one."""
    above = ratio > cap
    return above if floor is None else above | (ratio < floor)


Mask = Bool[Tensor, "R T"]


def row_mean(values: Tokens, mask: Mask, step_rows: float) -> Float[Tensor, ""]:
    """Mean over each row's completion tokens, then over the step's rows (GRPO): every completion weighs the same."""
    per_row = (values * mask).sum(1) / mask.sum(1).clamp(min=1)  # (R,)
    return per_row.sum() / step_rows


def token_mean(values: Tokens, mask: Mask, step_tokens: float) -> Float[Tensor, ""]:
    """Mean over all completion tokens of the step (DAPO, arXiv 2503.14476): every token weighs the same."""
    return (values * mask).sum() / step_tokens


def constant_length(values: Tokens, mask: Mask, step_rows: float, max_tokens: int) -> Float[Tensor, ""]:
    """Sum over completion tokens by rows times the longest length there can be (Dr. GRPO, arXiv 2503.20783).

    A token weighs the same in every completion of every step, however long the step's completions are.
    """
    return (values * mask).sum() / (step_rows * max_tokens)
