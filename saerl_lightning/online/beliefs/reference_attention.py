"""ReferenceAttention: a prompt's pass rate is the mean over similar prompts that were served lately.

N prompts in the pool, n that are asked for, P prompts of a step, K references, k columns of the feature rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import expit, logit, softmax

from saerl_lightning.data.features import dense
from saerl_lightning.data.kmeans import reduced_units
from saerl_lightning.data.labels import require_features
from saerl_lightning.online.beliefs.belief import Belief, Beta
from saerl_lightning.ranges import Count, Finite, Positive, Seed, require_in_range
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features

EDGE = 1e-4  # rates of 0 and 1 have no logit
CHUNK = 4096  # prompts at a time: their scores stay in the processor's cache


class ReferenceAttention(Belief):
    """Predicts a prompt's pass rate from the prompts served last, by attention over feature rows.

    A reference weighs as the softmax of its cosine with the prompt over `temperature`; the weighted mean of the references'
    rates is calibrated on the logit scale. (Source: DOTS, arXiv 2506.05316, equations and the authors' code. There K
    references are drawn and answered only for this, and a trained head makes the embeddings and sets scale and bias anew each
    round; ours: the references are the groups trained on last, which cost nothing more, the rows are the signals', and scale
    and bias are settings.)

    Args:
        references: Number of groups that are looked at (K), the latest ones, one a prompt.
        components: Number of columns that the feature rows are reduced to.
        temperature: Difference of cosines at which a reference weighs 1/e times as much.
        scale: Number that the logit of the mean is divided by.
        bias: Number that is added to it.
        answers: Number of answers that a prediction counts as.
        seed: Seed of the reduction.

    Raises:
        InputError: if a number is out of range.
    """

    def __init__(
        self,
        references: Count = 256,
        components: Count = 64,
        temperature: Positive = 0.1,
        scale: Positive = 1.0,
        bias: Finite = 0.0,
        answers: Positive = 4.0,
        seed: Seed = 0,
    ) -> None:
        self.references = references
        self.components = components
        self.temperature = temperature
        self.scale = scale
        self.bias = bias
        self.answers = answers
        self.seed = seed
        self._units = np.zeros((0, 1))  # (N, k), of length 1
        self._rows = np.zeros(0, dtype=np.int64)  # (K,), the latest last
        self._rates = np.zeros(0)  # (K,)
        require_in_range(self)

    @property
    def needs_features(self) -> bool:
        """True: it compares feature rows."""
        return True

    def begin(self, prompts: Sequence[Prompt], features: Features | None) -> None:
        """Reduces the feature rows, and forgets all references."""
        rows = require_features(type(self).__name__, prompts, features)
        reduced = dense(reduced_units(rows, np.arange(len(prompts)), self.components, self.seed)).astype(np.float64)
        self._units = reduced / np.maximum(np.linalg.norm(reduced, axis=1, keepdims=True), 1e-12)
        self._rows, self._rates = np.zeros(0, dtype=np.int64), np.zeros(0)

    def learn(
        self, rows: Int[np.ndarray, " P"], right: Float[np.ndarray, " P"], graded: Float[np.ndarray, " P"]
    ) -> None:
        """Makes a step's groups references, in place of earlier ones of the same prompts and of the oldest."""
        kept = ~np.isin(self._rows, rows)
        self._rows = np.concatenate([self._rows[kept], rows])[-self.references :]
        self._rates = np.concatenate([self._rates[kept], right / graded])[-self.references :]

    def beta(self, rows: Int[np.ndarray, " n"]) -> Beta:
        """Returns Beta distributions with the predicted mean; Beta(1, 1) before the first reference."""
        if not len(self._rows) or not len(rows):
            return np.ones(len(rows)), np.ones(len(rows))
        mean = np.concatenate([self._predict(rows[at : at + CHUNK]) for at in range(0, len(rows), CHUNK)])
        return self.answers * mean, self.answers * (1 - mean)

    def _predict(self, rows: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        scores = self._units[rows] @ self._units[self._rows].T / self.temperature  # (n, K)
        return attended(scores, self._rates, self.scale, self.bias)

    def state_dict(self) -> dict[str, Any]:
        """Returns the references and their rates."""
        return {"rows": torch.from_numpy(self._rows.copy()), "rates": torch.from_numpy(self._rates.copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._rows, self._rates = state["rows"].numpy().copy(), state["rates"].numpy().copy()


def attended(
    scores: Float[np.ndarray, "n K"], rates: Float[np.ndarray, " K"], scale: float = 1.0, bias: float = 0.0
) -> Float[np.ndarray, " n"]:
    """Returns calibrated weighted means of rates: sigmoid(logit(softmax(scores) . rates) / scale + bias).

    Args:
        scores: Scores of every reference for every prompt.
        rates: Rates of the references.
        scale: Number that the logit is divided by.
        bias: Number that is added to it.
    """
    mean = np.clip(softmax(scores, axis=1) @ rates, EDGE, 1 - EDGE)
    # An extreme scale or bias must still leave both parameters of a Beta distribution above 0.
    return np.clip(expit(logit(mean) / scale + bias), 1e-6, 1 - 1e-6)
