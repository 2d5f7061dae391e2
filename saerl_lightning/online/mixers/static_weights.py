"""StaticWeights: domains in fixed proportions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from saerl_lightning.errors import InputError, did_you_mean
from saerl_lightning.online.mixers.mixer import DomainResults, Mixer
from saerl_lightning.ranges import NotNegative, require_in_range


class StaticWeights(Mixer):
    """Serves domains in fixed proportions while they last.

    Args:
        weights: Weight of each domain by its name, as in {algebra: 2, geometry: 1}, divided by their sum; null gives all
            domains the same.

    Raises:
        InputError: if a weight is negative, or all are 0.
    """

    def __init__(self, weights: dict[str, NotNegative] | None = None) -> None:
        self.weights = weights
        require_in_range(self)
        if weights is not None and not sum(weights.values()):
            raise InputError(
                "StaticWeights.weights gives no domain a weight above 0; write one, or null for equal shares"
            )

    def check(self, names: Sequence[str]) -> None:
        """Refuses weights of other domains than there are."""
        given = set(names if self.weights is None else self.weights)
        for name in sorted(given - set(names)):
            raise InputError(
                f"StaticWeights.weights names {name!r}, and no domain has that name{did_you_mean(name, names)}; the domains "
                f"are {', '.join(names)}"
            )
        for name in sorted(set(names) - given):
            raise InputError(f"StaticWeights.weights has no weight for {name!r}; write one, 0 to serve it last")

    def shares(self, results: DomainResults) -> Float[np.ndarray, " D"]:
        """Returns the weights divided by their sum."""
        if self.weights is None:
            return np.full(len(results.sizes), 1 / len(results.sizes))
        weights = np.array([self.weights[name] for name in results.names], dtype=np.float64)
        return weights / weights.sum()
