"""TSCL: domains in proportion to how fast their pass rates change."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from saerl_lightning.online.mixers.mixer import DomainResults, ScoredMixer
from saerl_lightning.ranges import Positive, require_in_range


class TSCL(ScoredMixer):
    """Serves more of the domains whose pass rate rises or falls fast: score |slope of the latest results|.

    The slope is that of a least-squares line through a domain's results, one apart; with fewer than two it is 0. A falling
    pass rate counts too, as forgetting. (Source: teacher-student curriculum learning, arXiv 1707.00183, its window form,
    as in the authors' code of DataFlex-RL, arXiv 2609.06107. Results by steps, and the temperature: ours.)

    Args:
        temperature: Temperature of the softmax over the domains' slopes.

    Raises:
        InputError: if a number is out of range.
    """

    def __init__(self, temperature: Positive = 0.1, **common: Any) -> None:
        super().__init__(temperature=temperature, **common)
        require_in_range(self)

    def scores(self, results: DomainResults) -> Float[np.ndarray, " D"]:
        """Scores each domain by its slope's size."""
        return np.abs(slopes(results.pass_rate))


def slopes(results: Float[np.ndarray, "D W"]) -> Float[np.ndarray, " D"]:
    """Slopes of least-squares lines through each row's known values, against their positions; 0 for fewer than two."""
    known = ~np.isnan(results)
    count = np.maximum(known.sum(1, keepdims=True), 1)
    x = np.where(known, np.arange(results.shape[1]), 0.0)
    x = np.where(known, x - x.sum(1, keepdims=True) / count, 0.0)
    spread = (x**2).sum(1)
    return np.where(known, x * np.nan_to_num(results), 0.0).sum(1) / np.where(spread > 0, spread, 1.0)
