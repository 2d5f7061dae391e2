"""AdvantageBand: completions of middling |advantage| weighted more."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from saerl_lightning.errors import InputError
from saerl_lightning.objective.reweighting.reweighting import RowReweighting
from saerl_lightning.ranges import NotNegative, Share, require_in_range


class AdvantageBand(RowReweighting):
    """Multiplies the weight of completions whose |A| lies between two quantiles of the step, both included.

    (Source: equation and defaults of the authors' code of DataFlex-RL, arXiv 2609.06107. That the score is |A|, and linear
    interpolation of quantiles: ours.)

    Args:
        low: Quantile of |A| at which the band begins.
        high: Quantile of |A| at which the band ends.
        factor: Factor of the weight inside of the band; below 1 the others count more.

    Raises:
        InputError: if a number is out of range, or the band ends before it begins.
    """

    def __init__(self, low: Share = 0.25, high: Share = 0.75, factor: NotNegative = 2.0) -> None:
        self.low = low
        self.high = high
        self.factor = factor
        require_in_range(self)
        if low > high:
            raise InputError(f"AdvantageBand is from {low:g} to {high:g}; write a high that is at least the low")

    def raw(self, sizes: Float[Tensor, " n"], labels: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Returns the factor inside of the band, 1 outside."""
        if not len(sizes):
            return torch.ones_like(sizes)
        sizes = sizes.round(decimals=6)  # equal ones may differ in their last bits
        low, high = torch.quantile(sizes, torch.tensor([self.low, self.high], dtype=sizes.dtype))
        return torch.where((sizes >= low) & (sizes <= high), self.factor, 1.0).to(sizes)
