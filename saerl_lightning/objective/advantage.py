"""How the rewards of groups become advantages. A NaN reward (failed grader) has no say and gets advantage 0.

A group whose rewards are all equal gets exactly 0 from everything here that looks at groups, whatever the rounding: its
rows need not go through the policy.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Groups = Float[Tensor, "P G"]
LARGEST_WEIGHT = 1e6  # of `beta_advantages`, where the density is next to 0


def group_mean_std(rewards: Groups) -> tuple[Float[Tensor, "P 1"], Float[Tensor, "P 1"]]:
    """Means and unbiased standard deviations (n - 1) of each group over its valid rewards; 0 where they are too few."""
    valid = rewards.isfinite()  # (P, G)
    count = valid.sum(1, keepdim=True)  # (P, 1)
    filled = rewards.nan_to_num(0.0)
    mean = filled.sum(1, keepdim=True) / count.clamp(min=1)
    squares = ((filled - mean) * valid).square().sum(1, keepdim=True)
    return mean, (squares / (count - 1).clamp(min=1)).sqrt()


def centred(rewards: Groups) -> Groups:
    """Rewards minus the mean of their group; exactly 0 where a group's rewards are all equal."""
    valid = rewards.isfinite()
    lowest = rewards.masked_fill(~valid, torch.inf).amin(1, keepdim=True)  # (P, 1)
    highest = rewards.masked_fill(~valid, -torch.inf).amax(1, keepdim=True)
    mean, _ = group_mean_std(rewards)
    return torch.where(valid & (lowest < highest), rewards - mean, 0.0)


def group_advantages(rewards: Groups, scale_by_std: bool = True, eps: float = 1e-4) -> Groups:
    """Group-relative advantages A = (r - mean) / (std + eps) (GRPO, arXiv 2402.03300, section 4.1.2).

    Args:
        rewards: of P groups of G completions; NaN where the grader failed.
        scale_by_std: divide by the group's standard deviation; off gives Dr. GRPO's A = r - mean (arXiv 2503.20783).
        eps: keeps groups without variance finite; they get advantage 0.
    """
    _, std = group_mean_std(rewards)
    return centred(rewards) / (std + eps) if scale_by_std else centred(rewards)


def leave_one_out_advantages(rewards: Groups) -> Groups:
    """A = r - mean of the others' rewards, which is n / (n - 1) times r - mean; 0 for a completion without others.

    Source: RLOO, arXiv 2402.14740.
    """
    count = rewards.isfinite().sum(1, keepdim=True)  # (P, 1)
    return centred(rewards) * (count / (count - 1).clamp(min=1))


def batch_advantages(rewards: Groups, eps: float = 1e-8) -> Groups:
    """A = (r - mean) / (std + eps) over the whole batch (REINFORCE++, arXiv 2501.03262).

    Args:
        rewards: of all ranks' groups; NaN where the grader failed.
        eps: keeps a batch without variance finite; it gets advantage 0.
    """
    return group_advantages(rewards.reshape(1, -1), eps=eps).view_as(rewards)


def group_then_batch_advantages(rewards: Groups, eps: float = 1e-8) -> Groups:
    """A = (r - group mean) / (std of that over the batch + eps) (REINFORCE++-baseline, arXiv 2501.03262).

    The mean over the batch, which the paper subtracts too, is 0 already: every group's centred rewards add up to 0.
    """
    valid = rewards.isfinite()
    a = centred(rewards)
    std = (a.square().sum() / (valid.sum() - 1).clamp(min=1)).sqrt()  # ()
    return a / (std + eps)


def beta_advantages(rewards: Groups) -> Groups:
    """A = (r - p) / f(p; alpha, beta), p the group's mean reward and f a Beta density fitted to the batch.

    With a, b the Beta parameters that match the mean and variance of p over the batch's groups, alpha = 1 + a / 3 and
    beta = 1 + b / 3, not below 1: the choice of least gradient variance. Groups that succeed about as often as most do
    weigh little, rare ones more. Where p does not vary alpha = beta = 1, so A = r - p.

    Args:
        rewards: between 0 and 1; NaN where the grader failed.

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
