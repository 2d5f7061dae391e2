"""PassRateBand: groups of middling pass rates are trained on."""

from __future__ import annotations

from jaxtyping import Bool
from torch import Tensor

from saerl_lightning.errors import InputError
from saerl_lightning.objective.keeping.keep import Keep, KnownCompletions
from saerl_lightning.ranges import Share, require_in_range


class PassRateBand(Keep):
    """Trains on groups whose pass rate lies between two bounds, both excluded. A step without any changes no weight.

    The pass rate is the mean of the first reward. (Source: arXiv 2504.03380, with bounds .2 and .8; 0 and 1 drop the groups
    that DAPO, arXiv 2503.14476, replaces.)

    Args:
        low: Pass rate above which groups are kept.
        high: Pass rate below which groups are kept.

    Raises:
        InputError: if a bound is out of range, or nothing lies between them.
    """

    def __init__(self, low: Share = 0.2, high: Share = 0.8) -> None:
        self.low = low
        self.high = high
        require_in_range(self)
        if low >= high:
            raise InputError(f"PassRateBand is from {low:g} to {high:g}; write a high above the low")

    def keep(self, answers: KnownCompletions) -> Bool[Tensor, "P G"]:
        """Marks whole groups."""
        rate = answers.right.nanmean(1, keepdim=True)
        # A mean of eight thirds in float32 may miss its bound by the last bit.
        inside = (rate > self.low + 1e-6) & (rate < self.high - 1e-6)
        return inside.expand(answers.right.shape)
