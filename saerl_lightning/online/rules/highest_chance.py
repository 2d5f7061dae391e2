"""HighestChance: serves next the prompts whose groups most probably vary."""

from __future__ import annotations

import numpy as np

from saerl_lightning.online.rules.rule import Arrangement, Candidates, Rule, best_first


class HighestChance(Rule):
    """Serves next the prompts with the highest chance that a group is neither all right nor all wrong.

    (Source: ThinkPrior, arXiv 2609.09075, by secondary sources: the utility U of a Beta-binomial group.)
    """

    def arrange(self, left: Candidates, random: np.random.Generator) -> Arrangement:
        """Puts the batch of the highest chances first. Draws nothing."""
        return Arrangement(best_first(left.varies, left.batch_size))
