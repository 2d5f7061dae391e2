"""Nearest: serves next the prompts whose believed pass rate is nearest to a target."""

from __future__ import annotations

import numpy as np

from saerl_lightning.online.rules.rule import Arrangement, Candidates, Rule, best_first
from saerl_lightning.ranges import Share, require_in_range


class Nearest(Rule):
    """Serves next the prompts nearest to a target pass rate. The others keep the order of the plan.

    With `thompson` the pass rate is drawn from what is believed of it, in place of its mean, so that prompts of which
    little is known come up too. (Source: MoPPS, arXiv 2507.04632, and its code: Thompson draws, target 1/2. With means it
    is the rule of PCL, arXiv 2510.01135, by secondary sources.)

    Args:
        target: Pass rate that is served first.
        thompson: Whether pass rates are drawn at random from what is believed of them.

    Raises:
        InputError: if the target is out of range.
    """

    def __init__(self, target: Share = 0.5, thompson: bool = True) -> None:
        self.target = target
        self.thompson = thompson
        require_in_range(self)

    def arrange(self, left: Candidates, random: np.random.Generator) -> Arrangement:
        """Puts the nearest batch first."""
        rate = random.beta(left.a, left.b) if self.thompson else left.pass_rate
        return Arrangement(best_first(-np.abs(rate - self.target), left.batch_size))
