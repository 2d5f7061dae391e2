"""Counted: the base of beliefs that add each prompt's own right and wrong answers to a prior. N prompts in the pool."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from saerl_lightning.online.beliefs.belief import Belief, Beta


class Counted(Belief):
    """Adds each prompt's own counts to its prior; each new group first multiplies the older counts by `keep`.

    A subclass sets `_prior`, the parameters of every prompt's Beta distribution before its first group, in `begin`.
    """

    keep: float = 1.0  # share of a prompt's older counts that its next group keeps
    _prior: Float[np.ndarray, "N 2"] = np.zeros((0, 2))
    _counts: Float[np.ndarray, "N 2"] = np.zeros((0, 2))  # right, wrong

    def _begin_with(self, prior: Float[np.ndarray, "N 2"]) -> None:
        self._prior, self._counts = prior, np.zeros_like(prior)

    def learn(
        self, rows: Int[np.ndarray, " P"], right: Float[np.ndarray, " P"], graded: Float[np.ndarray, " P"]
    ) -> None:
        """Adds each group to its own prompt's counts."""
        self._counts[rows] = self.keep * self._counts[rows] + np.stack([right, graded - right], 1)

    def beta(self, rows: Int[np.ndarray, " n"]) -> Beta:
        """Returns the prior plus the prompts' own counts."""
        a, b = (self._prior[rows] + self._counts[rows]).T
        return a, b

    def state_dict(self) -> dict[str, Any]:
        """Returns the counts."""
        return {"counts": torch.from_numpy(self._counts.copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the counts."""
        self._counts = state["counts"].numpy().copy()
