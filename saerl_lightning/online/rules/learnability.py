"""Learnability: serves next the prompts with the highest p(1 - p)."""

from __future__ import annotations

import numpy as np

from saerl_lightning.online.rules.rule import Arrangement, Candidates, Rule, best_first


class Learnability(Rule):
    """Serves next the prompts with the highest p(1 - p), where p is the believed pass rate. The others keep their order.

    (Source: LILO, openreview 8HYeWMf0W3, by secondary sources, which measures p by extra completions of more prompts than
    it trains on; ours is that p is believed, which costs none.)
    """

    def arrange(self, left: Candidates, random: np.random.Generator) -> Arrangement:
        """Puts the most learnable batch first. Draws nothing."""
        return Arrangement(best_first(left.pass_rate * (1 - left.pass_rate), left.batch_size))
