"""ExcludeSolved: prompts that the policy answers right are served no more."""

from __future__ import annotations

import numpy as np

from saerl_lightning.online.rules.rule import Arrangement, Candidates, Rule
from saerl_lightning.ranges import PositiveShare, require_in_range

MARGIN = 1e-6  # for rounding: 7 of 8 is not below .875


class ExcludeSolved(Rule):
    """Keeps the order of the plan, and serves prompts no more whose believed pass rate has reached a threshold.

    Only prompts with a graded group are excluded. One lucky group is enough if the belief is the latest rate. (Source: the
    authors' code of open-instruct, where the latest group's rate counts and .875 is what its scripts have; there exclusion
    waits for the next epoch.)

    Args:
        threshold: Lowest pass rate that is excluded.

    Raises:
        InputError: if the threshold is out of range.
    """

    def __init__(self, threshold: PositiveShare = 0.875) -> None:
        self.threshold = threshold
        require_in_range(self)

    def arrange(self, left: Candidates, random: np.random.Generator) -> Arrangement:
        """Excludes what is solved. Draws nothing."""
        solved = (left.seen > 0) & (left.pass_rate >= self.threshold - MARGIN)
        return Arrangement(np.arange(len(left.rows)), excluded=solved, reason=f"pass rate from {self.threshold:g}")
