"""SparsePosterior: the feature posterior over all features of sparse rows, with a variance for each weight alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array, hstack

from saerl_lightning.data.features import row_count, unit_rows
from saerl_lightning.online.beliefs.feature_posterior import FeaturePosterior
from saerl_lightning.online.beliefs.weights import Diagonal, Learns, Weights
from saerl_lightning.ranges import Positive, PositiveShare, Share

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features


class SparsePosterior(FeaturePosterior):
    """Learns the pass rate as a function of all features, each with a weight of its own, in place of their components.

    Else as `FeaturePosterior`. Covariances of weights are dropped, so a feature that occurs beside another one takes its
    share of what both explain, and predictions are too sure of what features have in common. (Ours.)

    Args:
        label: Label from 0 (all right) to 100 (all wrong) that the weights learn from before training; null for none.
        learns: What is learned while training runs; see `FeaturePosterior`.
        answers: Number of answers that each label counts as.
        variance: Variance of the features' part, and of the constant, before any group.
        keep: Share of a prompt's own counts that its next group keeps.
        memory: Share of the likelihood of older steps that each new step keeps.

    Raises:
        InputError: if a number is out of range.
    """

    def __init__(
        self,
        label: str | None = None,
        learns: Learns = "all",
        answers: Positive = 8.0,
        variance: Positive = 1.0,
        keep: Share = 0.5,
        memory: PositiveShare = 0.98,
    ) -> None:
        super().__init__(label=label, learns=learns, answers=answers, variance=variance, keep=keep, memory=memory)

    def learn(
        self, rows: Int[np.ndarray, " P"], right: Float[np.ndarray, " P"], graded: Float[np.ndarray, " P"]
    ) -> None:
        """Learns from the groups of a step in the order of the pool, whatever the order in which they come."""
        order = np.argsort(rows, kind="stable")
        super().learn(rows[order], right[order], graded[order])

    def _start(self, rows: Features) -> tuple[Any, Weights]:
        """Returns the rows of norm 1 behind a constant, and independent weights."""
        units, constant = csr_array(unit_rows(rows)).astype(np.float64), np.ones((row_count(rows), 1))
        columns: Any = csr_array(hstack([constant, units], format="csr"))
        return columns, Diagonal(np.zeros(columns.shape[1]), np.full(columns.shape[1], self.variance))
