"""EasiestFirst: the plan's clusters from easy to hard, by what is believed now."""

from __future__ import annotations

import numpy as np

from saerl_lightning.data.ordering import cluster_first
from saerl_lightning.online.rules.rule import Arrangement, Candidates, Rule


class EasiestFirst(Rule):
    """Orders what is left cluster by cluster from easy to hard, as a curriculum does, by the pass rates believed now.

    So SAERL's curriculum corrects itself while training runs. (Ours; the order is SAERL's, arXiv 2605.27354.)
    """

    def arrange(self, left: Candidates, random: np.random.Generator) -> Arrangement:
        """Orders by the believed pass rate, the highest first. Draws nothing."""
        positions = np.arange(len(left.rows))
        return Arrangement(cluster_first(positions, left.cluster, 1 - left.pass_rate, left.batch_size))
