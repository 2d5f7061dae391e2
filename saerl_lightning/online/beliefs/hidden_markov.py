"""HiddenMarkov: each prompt is in one of three states (none, part or all right), which change as the policy does.

N prompts in the pool, n that are asked for, P prompts of a step, 3 states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int

from saerl_lightning.online.beliefs.belief import Belief, Believed, Beta
from saerl_lightning.ranges import Positive, Share, require_in_range
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features

NONE, PART, ALL = range(3)  # right answers in a group


class HiddenMarkov(Belief):
    """Learns for every prompt how its groups change among three states: no answer right, part of them, all of them.

    A graded group shows the state. Each prompt counts its own transitions, which decay to the prior with every step of the
    run, and the chance of each state moves on by them even while the prompt is not served. The chance that a group
    varies is that of the state "part". (Source: DPS, arXiv 2603.10887, equations and the authors' code. Ours: the pass rate,
    which is 0, 1, or anything between with equal density, as the Beta distribution of equal mean and variance.)

    Args:
        prior: Number of transitions that the prior counts between any two states.
        keep: Share of the counted transitions that each step of the run keeps.

    Raises:
        InputError: if a number is out of range.
    """

    def __init__(self, prior: Positive = 1.0, keep: Share = 0.7) -> None:
        self.prior = prior
        self.keep = keep
        self._transitions = np.zeros((0, 3, 3))  # (N, to, from)
        self._latest = np.zeros((0, 3))  # (N, 3) chances of the states at the latest step
        self._next = np.zeros((0, 3))  # (N, 3) chances of the states at the next step
        require_in_range(self)

    def begin(self, prompts: Sequence[Prompt], features: Features | None) -> None:
        """Sets every prompt to equal chances."""
        self._transitions = np.full((len(prompts), 3, 3), float(self.prior))
        self._latest, self._next = (np.full((len(prompts), 3), 1 / 3) for _ in range(2))

    def learn(
        self, rows: Int[np.ndarray, " P"], right: Float[np.ndarray, " P"], graded: Float[np.ndarray, " P"]
    ) -> None:
        """Counts the transitions to the states seen, and moves every prompt's chances on by one step."""
        state = np.where(right <= 0, NONE, np.where(right >= graded, ALL, PART))
        now = self._next.copy()
        now[rows] = np.eye(3)[state]
        counted = now[rows][:, :, None] * self._latest[rows][:, None, :] * _shares(self._transitions[rows])
        self._transitions = self.keep * self._transitions + (1 - self.keep) * self.prior
        self._transitions[rows] += counted / counted.sum((1, 2), keepdims=True)
        moved = (_shares(self._transitions) * now[:, None, :]).sum(2)
        self._latest, self._next = now, moved / moved.sum(1, keepdims=True)

    def beta(self, rows: Int[np.ndarray, " n"]) -> Beta:
        """Returns the Beta distribution with the mean and variance of the three states' pass rates."""
        part, whole = self._next[rows, PART], self._next[rows, ALL]
        mean = np.clip(whole + part / 2, 1e-6, 1 - 1e-6)
        variance = np.maximum(whole + part / 3 - mean**2, 1e-9)
        size = np.maximum(mean * (1 - mean) / variance - 1, 1e-3)
        return mean * size, (1 - mean) * size

    def believe(self, rows: Int[np.ndarray, " n"], group_size: int) -> Believed:
        """Returns the Beta distributions, and the chance of the state "part", whatever the size of a group."""
        return *self.beta(rows), self._next[rows, PART]

    def state_dict(self) -> dict[str, Any]:
        """Returns the transitions, and the chances of the states."""
        arrays = {"transitions": self._transitions, "latest": self._latest, "next": self._next}
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        arrays = (state[name].numpy().copy() for name in ("transitions", "latest", "next"))
        self._transitions, self._latest, self._next = arrays


def _shares(transitions: Float[np.ndarray, "n 3 3"]) -> Float[np.ndarray, "n 3 3"]:
    """Returns the chance of each next state, given the present one."""
    return transitions / transitions.sum(1, keepdims=True)
