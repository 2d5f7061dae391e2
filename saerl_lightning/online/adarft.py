"""AdaRFT: serves next the prompts nearest to a target difficulty, which rises while the policy is right.

N prompts in the pool, n left to serve.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from saerl_lightning.data.labels import read_label, require_label
from saerl_lightning.errors import InputError
from saerl_lightning.online.history import Groups
from saerl_lightning.online.operation import Learner
from saerl_lightning.online.rules.rule import Arrangement, best_first
from saerl_lightning.plan import SamplePlan
from saerl_lightning.ranges import Finite, Positive, Share, require_in_range
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features


class AdaRFT(Learner):
    """Serves next the prompts whose labelled difficulty is nearest to a target, which follows the mean reward of each step.

    After a step with the mean reward R the target moves by step * tanh(sensitivity * (R - reward)), and stays between
    `easiest` and `hardest`. Prompts without the label are served last. (Source: AdaRFT, arXiv 2504.05520, equations and the
    authors' code, with these defaults. There the target is not in the checkpoint; here it is.)

    Args:
        label: Label that is read as difficulty.
        start: Target before the first step.
        step: Largest change of the target in a step (eta).
        sensitivity: How fast the change grows with the distance from the wanted reward (alpha).
        reward: Mean reward at which the target stays (beta).
        easiest: Lowest difficulty that the target can take.
        hardest: Highest difficulty that the target can take.
        repeats: Whether a prompt may be served again before the epoch ends; the original may.

    Raises:
        InputError: if a number is out of range, or `start` is not between `easiest` and `hardest`.
    """

    def __init__(
        self,
        label: str = "difficulty",
        start: Finite = 0.0,
        step: Positive = 50.0,
        sensitivity: Positive = 2.0,
        reward: Share = 0.5,
        easiest: Finite = 0.0,
        hardest: Finite = 100.0,
        repeats: bool = False,
    ) -> None:
        super().__init__(repeats)
        self.label = label
        self.start = start
        self.step = step
        self.sensitivity = sensitivity
        self.reward = reward
        self.easiest = easiest
        self.hardest = hardest
        require_in_range(self, repeats=repeats)
        if not easiest <= start <= hardest:
            raise InputError(
                f"AdaRFT.start is {start:g}; write a difficulty from easiest ({easiest:g}) to hardest ({hardest:g})"
            )
        self.target = start
        self._difficulty = np.zeros(0)

    def check(self, prompts: Sequence[Prompt], planned: Int[np.ndarray, " K"]) -> None:
        """Refuses planned prompts without the label."""
        require_label(type(self).__name__, self.label, prompts, planned)

    def begin(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> None:
        """Reads the labels, and sets the target to its start."""
        self._difficulty = read_label(type(self).__name__, self.label, prompts)
        self.target = self.start

    def learn(self, groups: Groups) -> None:
        """Moves the target by the step's mean reward."""
        mean = groups.right.sum() / groups.graded.sum()
        moved = self.target + self.step * np.tanh(self.sensitivity * (mean - self.reward))
        self.target = float(np.clip(moved, self.easiest, self.hardest))

    def arrange(self, plan: SamplePlan, rest: Int[np.ndarray, " n"], random: np.random.Generator) -> Arrangement:
        """Puts the batch nearest to the target first. Draws nothing."""
        return Arrangement(best_first(-np.abs(self._difficulty[rest] - self.target), self.count(plan, rest)))

    def metrics(self) -> dict[str, float]:
        """Returns what the latest step was, and the target."""
        return {**self._report, "target": self.target}

    def state_dict(self) -> dict[str, Any]:
        """Returns what was served so far, and the target."""
        return super().state_dict() | {"target": self.target}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        super().load_state_dict(state)
        self.target = state["target"]
