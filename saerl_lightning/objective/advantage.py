"""Turns the rewards of groups into advantages. A NaN reward (failed grader) is ignored and gets advantage 0.

Every function that compares within groups gives exactly 0 for a group of equal rewards, in spite of rounding. The rows
of such a group can then skip the policy.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Groups = Float[Tensor, "P G"]
LARGEST_WEIGHT = 1e6  # of `beta_advantages`, where the density is next to 0


def group_mean_std(rewards: Groups) -> tuple[Float[Tensor, "P 1"], Float[Tensor, "P 1"]]:
    """Means and unbiased standard deviations (n - 1) of each group's valid rewards; 0 if there are too few."""
    valid = rewards.isfinite()  # (P, G)
    count = valid.sum(1, keepdim=True)  # (P, 1)
    filled = rewards.nan_to_num(0.0)
    mean = filled.sum(1, keepdim=True) / count.clamp(min=1)
    squares = ((filled - mean) * valid).square().sum(1, keepdim=True)
    return mean, (squares / (count - 1).clamp(min=1)).sqrt()


def centred(rewards: Groups) -> Groups:
    """Subtracts the mean of its group from each reward; exactly 0 if a group's rewards are all equal."""
    valid = rewards.isfinite()
    lowest = rewards.masked_fill(~valid, torch.inf).amin(1, keepdim=True)  # (P, 1)
    highest = rewards.masked_fill(~valid, -torch.inf).amax(1, keepdim=True)
    mean, _ = group_mean_std(rewards)
    return torch.where(valid & (lowest < highest), rewards - mean, 0.0)


def group_advantages(rewards: Groups, scale_by_std: bool = True, eps: float = 1e-4) -> Groups:
    """Computes group-relative advantages A = (r - mean) / (std + eps) (GRPO, arXiv 2402.03300, section 4.1.2).

    Args:
        rewards: Rewards of P groups of G completions; NaN if the grader failed.
        scale_by_std: Whether the difference is divided by the group's standard deviation; false gives Dr. GRPO's A = r
            - mean (arXiv 2503.20783).
        eps: Small number added to the deviation, so that groups without variance stay finite; they get advantage 0.
    """
    _, std = group_mean_std(rewards)
    return centred(rewards) / (std + eps) if scale_by_std else centred(rewards)


def leave_one_out_advantages(rewards: Groups) -> Groups:
    """Subtracts the mean of the others in the group from each reward: n / (n - 1) (r - mean); 0 without others.

    Source: RLOO, arXiv 2402.14740.
    """
    count = rewards.isfinite().sum(1, keepdim=True)  # (P, 1)
    return centred(rewards) * (count / (count - 1).clamp(min=1))


def batch_advantages(rewards: Groups, eps: float = 1e-8) -> Groups:
    """Normalises rewards over the whole batch: A = (r - mean) / (std + eps) (REINFORCE++, arXiv 2501.03262).

    Args:
        rewards: Rewards of the groups of all ranks; NaN if the grader failed.
        eps: Small number added to the deviation, so that a batch without variance stays finite; it gets advantage 0.
    """
    return group_advantages(rewards.reshape(1, -1), eps=eps).view_as(rewards)


def group_then_batch_advantages(rewards: Groups, eps: float = 1e-8) -> Groups:
    """Computes A = (r - group mean) / (its std over the batch + eps) (REINFORCE++-baseline, arXiv 2501.03262).

    The paper also subtracts the mean over the batch. It is 0 already, because each group's centred rewards sum to 0.
    """
    valid = rewards.isfinite()
    a = centred(rewards)
    std = (a.square().sum() / (valid.sum() - 1).clamp(min=1)).sqrt()  # ()
    return a / (std + eps)


def beta_advantages(rewards: Groups) -> Groups:
    """Computes A = (r - p) / f(p; alpha, beta): p is the group's mean reward, f a Beta density fitted to the batch.

    Let a and b be the Beta parameters that match the mean and variance of p over the batch's groups. Then alpha = 1 + a
    / 3 and beta = 1 + b / 3, but at least 1; this minimises the variance of the gradient. Groups with a common success
    rate get small weights, those with a rare one large weights. If p does not vary, alpha = beta = 1 and A = r - p.

    Args:
        rewards: Rewards between 0 and 1; NaN if the grader failed.

    Source: BNPO, arXiv 2506.02864; parameters and the largest weight, 1e6, as in the authors' code
    (github.com/changyi7231/BNPO, recipe/bnpo/src/bnpo_ray_trainer.py).
    """
    p, _ = group_mean_std(rewards)  # (P, 1)
    mean, std = group_mean_std(p[rewards.isfinite().any(1)].view(1, -1))  # (1, 1)
    variance = std.square()
    spread = torch.where(variance > 0, mean * (1 - mean) / variance - 1, 0.0)  # a + b
    alpha = (1 + spread * mean / 3).clamp(min=1.0)
    beta = (1 + spread * (1 - mean) / 3).clamp(min=1.0)
    log_norm = torch.lgamma(alpha) + torch.lgamma(beta) - torch.lgamma(alpha + beta)  # log B(alpha, beta)
    log_density = torch.xlogy(alpha - 1, p) + torch.xlogy(beta - 1, 1 - p) - log_norm  # (P, 1)
    return centred(rewards) * (-log_density).exp().clamp(max=LARGEST_WEIGHT)
