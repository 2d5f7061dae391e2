"""VarianceSchedule: groups of much variance are trained on, by a threshold that rises once."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from saerl_lightning.errors import InputError
from saerl_lightning.objective.keeping.keep import Keep, KnownCompletions
from saerl_lightning.ranges import Count, Share, require_in_range


class VarianceSchedule(Keep):
    """Trains on groups whose variance reaches a share of the largest possible one; the share rises after some batches.

    The variance is that of the first reward, with n - 1; the largest possible one is that of n answers half of which are
    right. A step without any such group changes no weight. (Source: VCRL, arXiv 2509.19803: formulas from a summary of
    the paper, .3 for 20 steps and .8 behind them from a review. Its memory bank is `VarianceBank`.)

    Args:
        first: Share of the largest variance in the first batches of the run.
        later: Share behind them; not below `first`.
        batches: Number of batches until the share rises.

    Raises:
        InputError: if a number is out of range, or `later` below `first`.
    """

    def __init__(self, first: Share = 0.3, later: Share = 0.8, batches: Count = 20) -> None:
        self.first = first
        self.later = later
        self.batches = batches
        require_in_range(self)
        if later < first:
            raise InputError(f"VarianceSchedule.later is {later:g}, below first {first:g}; write {first:g} or more")

    def check(self, group_size: int) -> None:
        """Refuses groups of one completion, which have no variance."""
        if group_size < 2:
            raise InputError(
                f"VarianceSchedule reads the variance of a group, and sampling.group_size is {group_size}; write "
                "--model.sampling.group_size 8, or --model.keep null"
            )

    def threshold(self, batches: int) -> float:
        """Share of the largest variance that a group must have after that many batches."""
        # Shares such as 20/25 must not miss it by the last bit.
        return (self.first if batches < self.batches else self.later) - 1e-6

    def keep(self, answers: KnownCompletions) -> Bool[Tensor, "P G"]:
        """Marks whole groups."""
        enough = variance_share(answers.right) >= self.threshold(answers.batches)
        return enough[:, None].expand(answers.right.shape)


def variance_share(right: Float[Tensor, "P G"]) -> Float[Tensor, " P"]:
    """Variance of each group as a share of the largest that n rewards from 0 to 1 can have; 0 for fewer than two.

    With k of n right this is 4k(n - k)/n² for an even n, and 4k(n - k)/(n² - 1) for an odd one.

    Args:
        right: First rewards; NaN for completions that are not in the loss.
    """
    count = right.isfinite().sum(1)  # (P,)
    distance = (right - right.nanmean(1, keepdim=True)).double()
    largest = (count**2 - count % 2) / (4 * count.clamp(min=1)).double()
    return (distance.square().nansum(1) / largest.clamp(min=1e-12)) * (count > 1)
