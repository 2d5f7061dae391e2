"""DUMP: domains in proportion to an upper confidence bound of their mean |advantage|."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from saerl_lightning.online.mixers.mixer import DomainResults, ScoredMixer, means
from saerl_lightning.ranges import NotNegative, require_in_range


class DUMP(ScoredMixer):
    """Serves more of the domains with a high mean |advantage|, and of those served seldom so far.

    The score is mean |A_d| + exploration * sqrt(2 ln(N + 1) / (n_d + 1)), with n_d graded groups of the domain and N of
    all. |A| is relative to its group, whatever the objective. (Source: DUMP, arXiv 2504.09710, equation and defaults as in
    the authors' code of DataFlex-RL, arXiv 2609.06107. Counts by groups, and results by steps: ours.)

    Args:
        exploration: Factor of the bound's width (c); 0 goes by the mean alone.

    Raises:
        InputError: if a number is out of range.
    """

    def __init__(self, exploration: NotNegative = 1.0, **common: Any) -> None:
        self.exploration = exploration
        super().__init__(**common)
        require_in_range(self)

    def scores(self, results: DomainResults) -> Float[np.ndarray, " D"]:
        """Scores each domain by its upper confidence bound."""
        n = results.groups
        return means(results.advantage) + self.exploration * np.sqrt(2 * np.log(n.sum() + 1) / (n + 1))
