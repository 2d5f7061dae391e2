"""PODS: the completions of each group whose rewards vary most."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saerl_lightning.errors import InputError
from saerl_lightning.objective.keeping.keep import Keep, KnownCompletions
from saerl_lightning.ranges import CountFrom2, require_in_range


class PODS(Keep):
    """Trains on n of each group's completions, those whose rewards have the largest variance.

    They are the a lowest and n - a highest rewards for some a. Advantages are computed among them. (Source: arXiv
    2504.13818; default as in the authors' code of DataFlex-RL, arXiv 2609.06107. Of equal choices, the one with the fewest
    low rewards, and of equal rewards the first: ours.)

    Args:
        count: Number of completions to keep of each group (n); null for half of them.

    Raises:
        InputError: if the count is below 2.
    """

    def __init__(self, count: CountFrom2 | None = None) -> None:
        self.count = count
        require_in_range(self)

    def check(self, group_size: int) -> None:
        """Refuses a count that keeps all completions, and groups that have no half."""
        if (self.count or group_size // 2) < 2 or (self.count or 0) >= group_size:
            raise InputError(
                f"PODS keeps {self.count or 'half'} of {group_size} completions (model.sampling.group_size); write a count "
                "from 2 to less than the group has"
            )

    def keep(self, answers: KnownCompletions) -> Bool[Tensor, "P G"]:
        """Marks the completions of the largest variance."""
        count = self.count or answers.total.shape[1] // 2
        return torch.stack([most_varied(rewards, count) for rewards in answers.total.double()])


def most_varied(rewards: Float[Tensor, " G"], count: int) -> Bool[Tensor, " G"]:
    """Marks the `count` rewards of the largest variance; all valid ones, if there are no more.

    Args:
        rewards: Rewards of a group; NaN for those that can't be kept.
        count: Number of rewards to keep.
    """
    kept = rewards.isfinite()
    valid = int(kept.sum())
    if valid <= count:
        return kept
    order = rewards.nan_to_num(torch.inf).argsort(stable=True)[:valid]  # rising
    ends = order.repeat(2)  # position p + valid is p again
    starts = torch.arange(valid - count, valid + 1)  # n neighbours from here on: the highest, then the lowest
    choices = ends[starts[:, None] + torch.arange(count)]  # (n + 1, n), the fewest low rewards first
    spread = rewards[choices].var(1, correction=0)  # (n + 1,)
    best = choices[(spread >= spread.max() - 1e-12).int().argmax()]  # the first of equal ones
    return torch.zeros_like(kept).index_fill(0, best, True)
