"""InterpolatedBeta: pass rates between those of a weak and a strong policy, beside each prompt's own groups.

N prompts in the pool, n that are asked for, P prompts of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int

from saerl_lightning.online.beliefs.anchors import anchor_rates, require_anchor
from saerl_lightning.online.beliefs.belief import Belief, Beta
from saerl_lightning.ranges import Share, require_in_range
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features

APART = 0.01  # anchors whose mean rates differ by less say nothing of a policy's place between them


class InterpolatedBeta(Belief):
    """Believes of prompts not served that the policy stands where it stands on those served: between two other policies.

    The place c is 0 if the policy is like the weak anchor on a step's prompts and 1 if like the strong one, smoothed over
    steps. At each step every prompt's Beta(a, b) forgets a part of what it holds beyond Beta(1, 1); then prompts of the
    step add their right and wrong answers, and all others `pseudo` times a group at the rate weak + c * (strong - weak).
    (Source: BOTS, arXiv 2510.26374, equations and the authors' code. Its paper has .1 forgotten and .1 pseudo, by
    secondary sources, and its code .2. Ours: a step on which the anchors differ by less than .01 leaves c, and prompts that
    lack a label get no pseudo-groups.)

    Args:
        weak: Label of the weak anchor, from 0 (it answers right always) to 100 (never).
        strong: Label of the strong anchor.
        keep: Share of a prompt's older evidence that each step keeps (1 - lambda).
        pseudo: Weight of a group at the interpolated rate (rho).
        smoothing: Share of the place between the anchors that each step keeps.

    Raises:
        InputError: if a number is out of range.
    """

    def __init__(
        self,
        weak: str = "weak_difficulty",
        strong: str = "strong_difficulty",
        keep: Share = 0.9,
        pseudo: Share = 0.1,
        smoothing: Share = 0.9,
    ) -> None:
        self.weak = weak
        self.strong = strong
        self.keep = keep
        self.pseudo = pseudo
        self.smoothing = smoothing
        self._anchors = np.zeros((0, 2))  # (N, 2) pass rates: weak, strong
        self._beta = np.zeros((0, 2))  # (N, 2): a, b
        self._place = float("nan")  # between the anchors; NaN before a step has shown it
        require_in_range(self)

    def check(self, prompts: Sequence[Prompt], planned: Int[np.ndarray, " K"]) -> None:
        """Refuses prompts of which most lack one of the labels."""
        for argument, label in (("weak", self.weak), ("strong", self.strong)):
            require_anchor(type(self).__name__, argument, label, prompts, planned)

    def begin(self, prompts: Sequence[Prompt], features: Features | None) -> None:
        """Sets every prompt to Beta(1, 1), as in the authors' code."""
        named = (("weak", self.weak), ("strong", self.strong))
        rates = [anchor_rates(type(self).__name__, argument, label, prompts) for argument, label in named]
        self._anchors, self._beta, self._place = np.stack(rates, 1), np.ones((len(prompts), 2)), float("nan")

    def learn(
        self, rows: Int[np.ndarray, " P"], right: Float[np.ndarray, " P"], graded: Float[np.ndarray, " P"]
    ) -> None:
        """Places the policy between the anchors, then adds real groups to the step's prompts and pseudo-groups to others."""
        self._settle(rows, right / graded)
        weak, strong = self._anchors.T
        rates = np.clip(weak + self._place * (strong - weak), 0, 1)
        pseudo = np.nan_to_num(self.pseudo * graded.mean() * np.stack([rates, 1 - rates], 1))
        pseudo[rows] = np.stack([right, graded - right], 1)
        self._beta = self.keep * self._beta + (1 - self.keep) + pseudo

    def _settle(self, rows: Int[np.ndarray, " P"], rates: Float[np.ndarray, " P"]) -> None:
        """Updates the place between the anchors by a step's pass rates."""
        known = ~np.isnan(self._anchors[rows]).any(1)
        if not known.any():
            return
        weak, strong = self._anchors[rows[known]].mean(0)
        if abs(strong - weak) < APART:
            return
        place = float((rates[known].mean() - weak) / (strong - weak))
        first = np.isnan(self._place)
        self._place = place if first else self.smoothing * self._place + (1 - self.smoothing) * place

    def beta(self, rows: Int[np.ndarray, " n"]) -> Beta:
        """Returns each prompt's Beta distribution."""
        return self._beta[rows, 0], self._beta[rows, 1]

    def metrics(self) -> dict[str, float]:
        """Returns the policy's place between the anchors, once it is known."""
        return {} if np.isnan(self._place) else {"between_anchors": self._place}

    def state_dict(self) -> dict[str, Any]:
        """Returns every prompt's distribution, and the place between the anchors."""
        return {"beta": torch.from_numpy(self._beta.copy()), "place": self._place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._beta, self._place = state["beta"].numpy().copy(), state["place"]
