"""DADS: domains in proportion to how far an exponential mean of their pass rates is from 1."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from saerl_lightning.online.mixers.mixer import DomainResults, Mixer, means
from saerl_lightning.ranges import NotNegative, Positive, ShareBelow1, require_in_range

MOST_KEPT = 10_000  # results, if hardly anything is forgotten


class DADS(Mixer):
    """Serves more of the domains with a low pass rate: e^((1 - r_d) / temperature) + epsilon, divided by the sum.

    r_d begins with a domain's first result and becomes keep * r_d + (1 - keep) * result with each one more. (Source:
    domain-aware dynamic sampling of RuleReasoner, arXiv 2506.08672, by secondary sources: keep 0.5, epsilon 0.1, and
    temperature 0.5 for rewards of -1 and 1, which is 0.25 for pass rates. The start of r_d, and a domain without results,
    which gets the others' mean: ours.)

    Args:
        temperature: Temperature of the distance from 1; lower ones prefer the weakest domain more.
        keep: Share of the exponential mean that stays with each further result.
        epsilon: Number added to every domain's weight, so that none gets nothing.

    Raises:
        InputError: if a number is out of range.
    """

    def __init__(self, temperature: Positive = 0.25, keep: ShareBelow1 = 0.5, epsilon: NotNegative = 0.1) -> None:
        self.temperature = temperature
        self.keep = keep
        self.epsilon = epsilon
        require_in_range(self)

    @property
    def kept(self) -> int:
        """As many results as have a weight above 1e-12."""
        return min(MOST_KEPT, math.ceil(-12 / math.log10(self.keep))) if self.keep > 0 else 1

    def shares(self, results: DomainResults) -> Float[np.ndarray, " D"]:
        """Returns the proportions by the exponential means."""
        rate = exponential_means(results.pass_rate, self.keep)
        rate = means(rate[:, None])  # fills in domains without results
        exponent = (1 - rate) / self.temperature
        top = exponent.max()  # both terms are divided by e^top, which overflows at low temperatures
        weights = np.exp(exponent - top) + self.epsilon * np.exp(-top)
        return weights / weights.sum()


def exponential_means(results: Float[np.ndarray, "D W"], keep: float) -> Float[np.ndarray, " D"]:
    """Exponential means of each row, from its first known value on; NaN for a row without any."""
    mean = results[:, 0]
    for value in results.T[1:]:
        mean = np.where(np.isnan(mean), value, keep * mean + (1 - keep) * value)
    return mean
