"""FeaturePosterior: pass rates by feature rows, learned while training runs, with each prompt's own counts on top.

N prompts, P of a step, k columns: a constant and the components of the feature rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import betaln

from saerl_lightning.data.features import dense, row_count
from saerl_lightning.data.kmeans import reduced_units
from saerl_lightning.data.labels import read_label, require_features
from saerl_lightning.errors import InputError
from saerl_lightning.online.beliefs.belief import Belief, Beta
from saerl_lightning.online.beliefs.weights import Gaussian, Learns, Weights
from saerl_lightning.ranges import Count, Positive, PositiveShare, Seed, Share, require_in_range
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features

RESIDUALS = (0.5, 1.0, 2.0, 4.0, 8.0)  # tried side by side
DRIFTS = (0.0, 0.02, 0.2)  # likewise
CHUNK = 256  # groups of one update: it solves equations of this size


class FeaturePosterior(Belief):
    """Learns the pass rate as a function of feature rows, so that prompts never served are predicted from those served.

    The pass rate of prompt i is the sigmoid of w * phi_i + u_i: weights w that all prompts share, and a residual of each.
    After every step w is updated by the step's groups, and the prompt's own counts are added to what w predicts. The
    residual's variance and the drift are chosen, at every step, among fifteen pairs by the discounted likelihood of the
    counts that came. (Ours. Posteriors over embeddings are GPS's and PCL's idea, arXiv 2602.01970 and 2510.01135; that over
    the features of an SAE, with its nulls, was found nowhere.)

    Args:
        components: Number of columns that the feature rows are reduced to.
        label: Label from 0 (all right) to 100 (all wrong) that the weights learn from before training; null for none.
        learns: What is learned while training runs: "all"; "constant", by which the policy gets better or worse at all
            prompts; or "nothing" of the weights, so that they stay the labels'. The last two are controls.
        answers: Number of answers that each label counts as.
        variance: Variance of the features' part, and of the constant, before any group.
        keep: Share of a prompt's own counts that its next group keeps.
        memory: Share of the likelihood of older steps that each new step keeps.
        seed: Seed of the reduction.

    Raises:
        InputError: if a number is out of range.
    """

    def __init__(
        self,
        components: Count = 64,
        label: str | None = None,
        learns: Learns = "all",
        answers: Positive = 8.0,
        variance: Positive = 1.0,
        keep: Share = 0.5,
        memory: PositiveShare = 0.98,
        seed: Seed = 0,
    ) -> None:
        self.components = components
        self.label = label
        self.learns: Learns = learns
        self.answers = answers
        self.variance = variance
        self.keep = keep
        self.memory = memory
        self.seed = seed
        self._columns: Any = np.zeros((0, 1))  # (N, k)
        self._own = np.zeros((0, 2))  # (N, 2): right, wrong
        self._filters: list[Weights] = []
        self._scores = np.zeros(0)  # discounted log-likelihoods of the filters
        require_in_range(self)

    @property
    def needs_features(self) -> bool:
        """True: it predicts from feature rows."""
        return True

    def check(self, prompts: Sequence[Prompt], planned: Int[np.ndarray, " K"]) -> None:
        """Refuses prompts of which none has the label, and to learn nothing at all."""
        if self.label is None and self.learns == "nothing":
            raise InputError(
                f"{type(self).__name__}.learns is 'nothing' and label is null, so that it would predict the same of all "
                "prompts; name the label to predict from, such as difficulty"
            )
        if self.label is not None:
            read_label(type(self).__name__, self.label, prompts)

    def begin(self, prompts: Sequence[Prompt], features: Features | None) -> None:
        """Reduces the feature rows, and learns from the labels, if there are any."""
        self._columns, start = self._start(require_features(type(self).__name__, prompts, features))
        self._own = np.zeros((len(prompts), 2))
        self._filters = [replace(start, residual=u, drift=q) for u, q in itertools.product(RESIDUALS, DRIFTS)]
        self._scores = np.zeros(len(self._filters))
        if self.label is not None:
            self._learn_labels(read_label(type(self).__name__, self.label, prompts))
        self._filters = [each.known(self.learns) for each in self._filters]

    def _start(self, rows: Features) -> tuple[Any, Weights]:
        """Returns the columns of every prompt, the constant first, and what is believed of their weights at first."""
        reduced = dense(reduced_units(rows, np.arange(row_count(rows)), self.components, self.seed)).astype(np.float64)
        reduced -= reduced.mean(0)
        reduced /= max(float(np.sqrt((reduced**2).sum(1).mean())), 1e-12)
        columns = np.hstack([np.ones((len(reduced), 1)), reduced])
        return columns, Gaussian(np.zeros(columns.shape[1]), np.eye(columns.shape[1]) * self.variance)

    def _learn_labels(self, label: Float[np.ndarray, " N"]) -> None:
        known = np.flatnonzero(~np.isnan(label))
        for start in range(0, len(known), CHUNK):
            rows = known[start : start + CHUNK]
            right = self.answers * np.clip(1 - label[rows] / 100, 0, 1)
            graded = np.full(len(rows), self.answers)
            self._filters = [each.updated(self._columns[rows], right, graded) for each in self._filters]

    def learn(
        self, rows: Int[np.ndarray, " P"], right: Float[np.ndarray, " P"], graded: Float[np.ndarray, " P"]
    ) -> None:
        """Judges every pair of variances by a step's groups, then updates the weights and the prompts' own counts."""
        wrong, columns = graded - right, self._columns[rows]
        self._filters = [each.later() for each in self._filters]
        for number, each in enumerate(self._filters):
            a, b = self._with_own(each, rows)
            likelihood = betaln(a + right, b + wrong) - betaln(a, b)
            self._scores[number] = self.memory * self._scores[number] + likelihood.sum()
        self._filters = [each.updated(columns, right, graded) for each in self._filters]
        if self.learns == "all":
            self._own[rows] = self.keep * self._own[rows] + np.stack([right, wrong], 1)

    def beta(self, rows: Int[np.ndarray, " n"]) -> Beta:
        """Returns what the weights predict, plus the prompts' own counts."""
        return self._with_own(self._filters[self._best], rows)

    @property
    def _best(self) -> int:
        return int(self._scores.argmax())

    def _with_own(self, model: Weights, rows: Int[np.ndarray, " n"]) -> Beta:
        a, b = model.beta(self._columns[rows])
        return a + self._own[rows, 0], b + self._own[rows, 1]

    def metrics(self) -> dict[str, float]:
        """Returns the variances that are in use."""
        return {"residual": self._filters[self._best].residual, "drift": self._filters[self._best].drift}

    def state_dict(self) -> dict[str, Any]:
        """Returns the weights of every pair of variances, their likelihoods, and the prompts' own counts."""
        stacked = {
            "mean": np.stack([each.mean for each in self._filters]),
            "covariance": np.stack([each.covariance for each in self._filters]),
            "scores": self._scores,
            "own": self._own,
        }
        return {name: torch.from_numpy(values.copy()) for name, values in stacked.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        mean, covariance, scores, own = (state[name].numpy().copy() for name in ("mean", "covariance", "scores", "own"))
        self._filters = [
            replace(each, mean=mean[number], covariance=covariance[number]) for number, each in enumerate(self._filters)
        ]
        self._scores, self._own = scores, own
