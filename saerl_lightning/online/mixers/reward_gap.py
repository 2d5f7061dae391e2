"""RewardGap: domains in proportion to how far their pass rates are behind the best domain's."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from saerl_lightning.online.mixers.mixer import DomainResults, ScoredMixer, means
from saerl_lightning.ranges import require_in_range


class RewardGap(ScoredMixer):
    """Serves more of the domains whose pass rate is far below that of the best domain: score max m - m_d.

    m_d is the mean of a domain's latest results; a domain without any gets the others' mean. It is DoReMi's idea (arXiv
    2305.10429) with pass rates in place of excess losses. (Source: equation and defaults of the authors' code of
    DataFlex-RL, arXiv 2609.06107. Results by steps, and domains without any: ours.)

    Raises:
        InputError: if a number is out of range.
    """

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        require_in_range(self)

    def scores(self, results: DomainResults) -> Float[np.ndarray, " D"]:
        """Scores each domain by the distance from the best one."""
        mean = means(results.pass_rate)
        return mean.max() - mean
