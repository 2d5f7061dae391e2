"""SoftmaxLearnability: draws the next prompts at random, those with a high p(1 - p) more often."""

from __future__ import annotations

import numpy as np

from saerl_lightning.online.rules.rule import Arrangement, Candidates, Rule, drawn_first
from saerl_lightning.ranges import NotNegative, require_in_range


class SoftmaxLearnability(Rule):
    """Draws the next batch without replacement, a prompt with chance proportional to exp(sharpness * p(1 - p)).

    p is the believed pass rate. At the default a prompt at .5 is drawn 25 times as often as one at .9. (Source: ProCuRL,
    arXiv 2304.12877, equations and the authors' code, with an optimal pass rate of 1.)

    Args:
        sharpness: Number that p(1 - p) is multiplied by; 0 draws all alike.

    Raises:
        InputError: if the number is out of range.
    """

    def __init__(self, sharpness: NotNegative = 20.0) -> None:
        self.sharpness = sharpness
        require_in_range(self)

    def arrange(self, left: Candidates, random: np.random.Generator) -> Arrangement:
        """Puts the drawn batch first."""
        logits = self.sharpness * left.pass_rate * (1 - left.pass_rate)
        return Arrangement(drawn_first(logits, left.batch_size, random))
