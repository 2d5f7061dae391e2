"""Weights: what is believed of the weights by which columns predict pass rates, all covariances known or only variances.

P prompts of a step, n rows that are asked for, k columns, of which the first is a constant.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
from jaxtyping import Float

from saerl_lightning.online.beliefs.belief import Beta

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(20)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
Learns = Literal["all", "constant", "nothing"]


@dataclass(frozen=True)
class Weights(ABC):
    """Weights w ~ N(mean, covariance) of a linear model of the pass rate's logit, and the variances beside it."""

    mean: Float[np.ndarray, " k"]
    covariance: np.ndarray
    residual: float = 0.0  # variance of what the columns do not explain of a prompt
    drift: float = 0.0  # variance that the constant's weight gains a step, because the policy changes

    @property
    @abstractmethod
    def constant(self) -> Any:
        """Place of the variance of the constant's weight in the covariance."""

    def later(self) -> Self:
        """Returns the distribution one step later: the constant's weight has wandered."""
        covariance = self.covariance.copy()
        covariance[self.constant] += self.drift
        return replace(self, covariance=covariance)

    def known(self, learns: Learns) -> Self:
        """Returns the distribution with all weights known that are not learned any more."""
        if learns == "all":
            return self
        covariance = np.zeros_like(self.covariance)
        if learns == "nothing":
            return replace(self, covariance=covariance, drift=0.0)
        covariance[self.constant] = self.covariance[self.constant]
        return replace(self, covariance=covariance)

    @abstractmethod
    def updated(self, columns: Any, right: Float[np.ndarray, " P"], graded: Float[np.ndarray, " P"]) -> Weights:
        """Returns the distribution after graded groups: a Kalman update on their empirical logits.

        The logit of a group is ln((k + 1/2) / (n - k + 1/2)), and its variance 1 / (k + 1/2) + 1 / (n - k + 1/2), plus
        the residual.
        """

    @abstractmethod
    def variance(self, columns: Any) -> Float[np.ndarray, " n"]:
        """Returns the variance of each row's logit, without the residual."""

    def beta(self, columns: Any) -> Beta:
        """Returns the Beta distributions with the mean and variance of the pass rates, by 20-point Gauss-Hermite."""
        mean, square = _moments(columns @ self.mean, np.sqrt(self.variance(columns) + self.residual))
        mean = np.clip(mean, 1e-6, 1 - 1e-6)
        size = mean * (1 - mean) / np.maximum(square - mean**2, 1e-9) - 1
        size = np.maximum(size, 1e-3)
        return mean * size, (1 - mean) * size


class Gaussian(Weights):
    """Weights with all their covariances, (k, k). Its update is exact, so groups may come in any order."""

    @property
    def constant(self) -> Any:
        """Place of the constant's variance."""
        return (0, 0)

    def updated(
        self, columns: Float[np.ndarray, "P k"], right: Float[np.ndarray, " P"], graded: Float[np.ndarray, " P"]
    ) -> Gaussian:
        """Returns the distribution after graded groups."""
        logit, noise = _logits(right, graded, self.residual)
        shared = columns @ self.covariance  # (P, k)
        gain = np.linalg.solve(shared @ columns.T + np.diag(noise), shared).T  # (k, P)
        covariance = self.covariance - gain @ shared
        mean = self.mean + gain @ (logit - columns @ self.mean)
        return replace(self, mean=mean, covariance=(covariance + covariance.T) / 2)

    def variance(self, columns: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
        """Returns the variance of each row's logit, without the residual."""
        return ((columns @ self.covariance) * columns).sum(1)


class Diagonal(Weights):
    """Weights of sparse columns with their variances alone, (k,): time and memory go with the entries that are not 0.

    Groups are taken one after the other, and the covariances that each of them would make are dropped. (Ours: a Kalman
    filter whose covariance is kept diagonal.)
    """

    @property
    def constant(self) -> Any:
        """Place of the constant's variance."""
        return 0

    def updated(self, columns: Any, right: Float[np.ndarray, " P"], graded: Float[np.ndarray, " P"]) -> Diagonal:
        """Returns the distribution after graded groups, one after the other."""
        mean, covariance = self.mean.copy(), self.covariance.copy()
        starts, places, values = columns.indptr, columns.indices, columns.data
        for row, (logit, noise) in enumerate(zip(*_logits(right, graded, self.residual), strict=True)):
            entries = slice(starts[row], starts[row + 1])
            where, x = places[entries], values[entries]
            shared = covariance[where] * x
            gain = shared / (shared @ x + noise)
            mean[where] += gain * (logit - x @ mean[where])
            covariance[where] -= gain * shared
        return replace(self, mean=mean, covariance=covariance)

    def variance(self, columns: Any) -> Float[np.ndarray, " n"]:
        """Returns the variance of each row's logit, without the residual."""
        return columns.power(2) @ self.covariance


def _logits(
    right: Float[np.ndarray, " P"], graded: Float[np.ndarray, " P"], residual: float
) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"]]:
    """Returns the empirical logits of groups, and their variances."""
    logit = np.log((right + 0.5) / (graded - right + 0.5))
    return logit, 1 / (right + 0.5) + 1 / (graded - right + 0.5) + residual


def _moments(
    logit: Float[np.ndarray, " n"], spread: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Returns the means of sigmoids of normal logits, and of their squares.

    Node by node, as (n, 20) numbers fit in no cache, and by `exp`, which is faster than `expit`: 10 ms in place of 24 at
    100,000 rows.
    """
    mean, square = np.zeros(len(logit)), np.zeros(len(logit))
    with np.errstate(over="ignore"):  # the sigmoid is 0 there
        for node, weight in zip(NODES, WEIGHTS, strict=True):
            rate = 1 / (1 + np.exp(-(logit + spread * node)))
            mean += weight * rate
            square += weight * rate**2
    return mean, square
