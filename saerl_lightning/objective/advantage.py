"""How the rewards of a group become advantages. A NaN reward (failed grader) has no say and gets advantage 0."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def group_mean_std(rewards: Float[Tensor, "P G"]) -> tuple[Float[Tensor, "P 1"], Float[Tensor, "P 1"]]:
    """Means and unbiased standard deviations (n - 1) of each group over its valid rewards; 0 where they are too few."""
    valid = rewards.isfinite()  # (P, G)
    count = valid.sum(1, keepdim=True)  # (P, 1)
    filled = rewards.nan_to_num(0.0)
    mean = filled.sum(1, keepdim=True) / count.clamp(min=1)
    squares = ((filled - mean) * valid).square().sum(1, keepdim=True)
    return mean, (squares / (count - 1).clamp(min=1)).sqrt()


def group_advantages(
    rewards: Float[Tensor, "P G"], scale_by_std: bool = True, eps: float = 1e-4
) -> Float[Tensor, "P G"]:
    """Group-relative advantages A = (r - mean) / (std + eps) (GRPO, arXiv 2402.03300, section 4.1.2).

    Args:
        rewards: of P groups of G completions; NaN where the grader failed.
        scale_by_std: divide by the group's standard deviation; off gives Dr. GRPO's A = r - mean (arXiv 2503.20783).
        eps: keeps groups without variance finite; they get advantage 0.
    """
    mean, std = group_mean_std(rewards)
    centred = torch.where(rewards.isfinite(), rewards - mean, 0.0)
    return centred / (std + eps) if scale_by_std else centred
