"""Belief: the interface of what is believed of each prompt's pass rate, and the arithmetic of Beta distributions.

N prompts in the pool, n rows that are asked for, P prompts of a step, G completions a prompt.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from scipy.special import gammaln

from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features

Beta = tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]  # its two parameters, one pair a prompt
Believed = tuple[
    Float[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, " n"]
]  # these, and a chance from 0 to 1


class Belief(ABC):
    """Predicts every prompt's pass rate, and learns from each step's groups. The constructor only stores its arguments.

    All methods are deterministic, because a resumed run and other processes must come to the same numbers.
    """

    @property
    def needs_features(self) -> bool:
        """Whether `begin` reads feature rows, and thus needs a signal source."""
        return False

    def check(self, prompts: Sequence[Prompt], planned: Int[np.ndarray, " K"]) -> None:
        """Refuses prompts that the belief can't start from, before features are computed. By default refuses nothing.

        Args:
            prompts: Prompts of the pool, followed by the reference prompts.
            planned: Rows that are certainly planned; none after a filter.

        Raises:
            InputError: with what is missing, and what to write instead.
        """

    @abstractmethod
    def begin(self, prompts: Sequence[Prompt], features: Features | None) -> None:
        """Sets every prompt to its prior.

        Args:
            prompts: Prompts of the pool (N).
            features: Feature rows of the pool, (N, F); None without a signal source.
        """

    @abstractmethod
    def learn(
        self, rows: Int[np.ndarray, " P"], right: Float[np.ndarray, " P"], graded: Float[np.ndarray, " P"]
    ) -> None:
        """Learns from the groups of one step.

        Args:
            rows: Pool rows of the step's prompts, each at most once.
            right: Number of right answers in each group; a fraction where the reward is one.
            graded: Number of graded answers in each group, at least 1.
        """

    @abstractmethod
    def beta(self, rows: Int[np.ndarray, " n"]) -> Beta:
        """Returns the parameters a, b > 0 of the Beta distribution that is believed of each prompt's pass rate."""

    def believe(self, rows: Int[np.ndarray, " n"], group_size: int) -> Believed:
        """Returns a and b of each pass rate, and the chance that a group's answers are neither all right nor all wrong."""
        a, b = self.beta(rows)
        return a, b, chance_to_vary(a, b, group_size)

    def metrics(self) -> dict[str, float]:
        """Returns numbers for the logs, by name; none by default."""
        return {}

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Returns everything that `learn` changes: numbers, strings, lists and tensors."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""


def chance_to_vary(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"], group_size: int) -> Float[np.ndarray, " n"]:
    """Computes the chance that a group varies if its pass rate is drawn from Beta(a, b).

    It is 1 less the chances that all answers are right or all wrong, which are ratios of rising factorials:
    1 - (a)_G / (a + b)_G - (b)_G / (a + b)_G. (Source: ThinkPrior, arXiv 2609.09075, its utility U.)

    Args:
        a: First parameter of each Beta distribution.
        b: Second parameter of each Beta distribution.
        group_size: Number of answers in a group (G).
    """

    def rising(x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        return gammaln(x + group_size) - gammaln(x)

    chance = 1 - np.exp(rising(a) - rising(a + b)) - np.exp(rising(b) - rising(a + b))
    return np.clip(chance, 0.0, 1.0)


def mean_and_sd(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> Beta:
    """Computes mean and standard deviation of Beta distributions."""
    mean = a / (a + b)
    return mean, np.sqrt(mean * (1 - mean) / (a + b + 1))
