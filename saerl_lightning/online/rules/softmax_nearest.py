"""SoftmaxNearest: draws the next prompts at random, those near a target pass rate more often."""

from __future__ import annotations

import numpy as np

from saerl_lightning.online.rules.rule import Arrangement, Candidates, Rule, drawn_first
from saerl_lightning.ranges import Positive, Share, require_in_range


class SoftmaxNearest(Rule):
    """Draws the next batch without replacement, a prompt with chance proportional to exp(-|p - target| / temperature).

    p is the believed pass rate. (Source: DOTS, arXiv 2506.05316, with temperature .001, and BOTS, arXiv 2510.26374; the
    equations and the authors' code of both.)

    Args:
        target: Pass rate that is drawn most often.
        temperature: Distance from the target at which a prompt is drawn 1/e times as often.

    Raises:
        InputError: if a number is out of range.
    """

    def __init__(self, target: Share = 0.5, temperature: Positive = 1e-3) -> None:
        self.target = target
        self.temperature = temperature
        require_in_range(self)

    def arrange(self, left: Candidates, random: np.random.Generator) -> Arrangement:
        """Puts the drawn batch first."""
        logits = -np.abs(left.pass_rate - self.target) / self.temperature
        return Arrangement(drawn_first(logits, left.batch_size, random))
