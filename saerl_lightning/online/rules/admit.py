"""Admit: keeps the order of the plan, but prompts whose groups would hardly vary wait."""

from __future__ import annotations

import numpy as np

from saerl_lightning.errors import InputError
from saerl_lightning.online.rules.rule import Arrangement, Candidates, Rule, waiting_last
from saerl_lightning.ranges import Share, require_in_range


class Admit(Rule):
    """Keeps the order of the plan, and lets prompts wait whose chance to vary is below a threshold. (Ours.)

    If fewer than a batch are admitted, those that wait are served in the plan's order too. The chances must be
    calibrated; see `data/online/effective_predicted` beside `data/online/effective`.

    Args:
        least: Smallest chance to vary that is admitted.

    Raises:
        InputError: if the threshold is out of range.
    """

    def __init__(self, least: Share = 0.3) -> None:
        self.least = least
        require_in_range(self)

    def check(self, group_size: int) -> None:
        """Refuses a threshold that no group of this size can reach."""
        most = 1 - 2 * 0.5**group_size
        if self.least > most:
            raise InputError(
                f"Admit.least is {self.least:g}, and a group of {group_size} varies with a chance of at most {most:.3g} (at "
                "a pass rate of one half); write less, or no prompt is admitted"
            )

    def arrange(self, left: Candidates, random: np.random.Generator) -> Arrangement:
        """Puts those that wait last. Draws nothing."""
        return waiting_last(left.varies < self.least, f"chance to vary below {self.least:g}")
