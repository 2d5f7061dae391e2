"""GRESO: lets prompts wait, or leaves them out of an epoch, whose latest groups did not vary, by a coin in each epoch.

N prompts in the pool, n left to serve, P prompts of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int

from saerl_lightning.online.history import Groups
from saerl_lightning.online.operation import Learner
from saerl_lightning.online.rules.rule import Arrangement, waiting_last
from saerl_lightning.plan import SamplePlan
from saerl_lightning.ranges import PositiveShare, Seed, Share, require_in_range
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features

LEAST, MOST, STEP = 0.05, 0.95, 0.01  # of the two base chances
FLOOR = 0.01  # smallest chance to be served
SPLIT = np.array([1 / 3, 2 / 3])  # of the target share: all right, all wrong
REASON = "its latest groups did not vary"


class GRESO(Learner):
    """Skips prompts whose latest groups were all right, or all wrong, the surer the longer this has been so.

    After c such groups in a row a prompt is served with chance p^c, and at least .01; p is `easy` for all right and `hard`
    for all wrong. From the second epoch on, each p falls by .01 after a step in which the share of such groups reaches its
    part of the target (a third for all right, two thirds for all wrong), rises by .01 after another, and stays within .05
    and .95. A prompt's coin is thrown once an epoch, from the seed, the epoch and its row. (Source: GRESO, arXiv
    2506.02177, equations and the authors' code. Ours: a group counts if all graded answers are right, or all wrong; the code
    has above .98 and up to .11, which is the same for 8 answers.)

    Args:
        easy: Base chance to serve a prompt after a group that was all right.
        hard: Base chance to serve a prompt after a group that was all wrong.
        target: Share of groups that may fail to vary.
        skip: Whether skipped prompts are left out of the epoch, which then is shorter, as in the source; otherwise they
            wait, and are served at its end.
        seed: Seed of the coins.

    Raises:
        InputError: if a number is out of range.
    """

    def __init__(
        self,
        easy: PositiveShare = 0.5,
        hard: PositiveShare = 0.5,
        target: Share = 0.25,
        skip: bool = False,
        seed: Seed = 0,
    ) -> None:
        super().__init__(seed=seed)
        self.easy = easy
        self.hard = hard
        self.target = target
        self.skip = skip
        self._streaks = np.zeros((0, 2))  # (N, 2) groups in a row: all right, all wrong
        self._chances = np.array([easy, hard], dtype=np.float64)
        require_in_range(self)

    def begin(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> None:
        """Sets both base chances to their start; no prompt is skipped."""
        self._streaks = np.zeros((len(prompts), 2))
        self._chances = np.array([self.easy, self.hard], dtype=np.float64)

    def learn(self, groups: Groups) -> None:
        """Counts groups in a row, and from the second epoch on moves the base chances."""
        same = np.stack([groups.right >= groups.graded, groups.right <= 0], 1)  # (P, 2)
        self._streaks[groups.rows] = np.where(same, self._streaks[groups.rows] + 1, 0)
        if self.history.groups[groups.rows].max() > 1:
            self._chances = moved_chances(self._chances, same.mean(0), self.target)

    def arrange(self, plan: SamplePlan, rest: Int[np.ndarray, " n"], random: np.random.Generator) -> Arrangement:
        """Puts those that are skipped last, or leaves them out."""
        coin = np.random.default_rng([self.seed, self._epoch(rest)]).random(len(self._streaks))[rest]
        skipped = coin < skip_chances(self._streaks[rest], self._chances).max(1)
        begins = len(rest) == len(plan.rows)
        if not self.skip or (begins and (~skipped).sum() < plan.batch_size):  # an epoch has a batch at least
            return waiting_last(skipped, REASON)
        return Arrangement(np.arange(len(rest)), excluded=skipped, reason=REASON)

    def _epoch(self, rest: Int[np.ndarray, " n"]) -> int:
        """Number of epochs before this one: the most groups that a prompt has from earlier epochs."""
        handed_out = np.ones(len(self._streaks), dtype=np.int64)
        handed_out[rest] = 0
        return int((self.history.groups - handed_out).max(initial=0))

    def metrics(self) -> dict[str, float]:
        """Returns what the latest step was, and both base chances."""
        easy, hard = self._chances.tolist()
        return {**self._report, "easy": easy, "hard": hard}

    def state_dict(self) -> dict[str, Any]:
        """Returns what was served so far, the groups in a row, and both base chances."""
        arrays = {"streaks": self._streaks, "chances": self._chances}
        return super().state_dict() | {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        super().load_state_dict(state)
        self._streaks, self._chances = (state[name].numpy().copy() for name in ("streaks", "chances"))


def skip_chances(streaks: Float[np.ndarray, "n 2"], chances: Float[np.ndarray, " 2"]) -> Float[np.ndarray, "n 2"]:
    """Returns the chance to skip each prompt, 1 - max(p^c, .01), for groups in a row that were all right and all wrong."""
    return 1 - np.maximum(chances**streaks, FLOOR)


def moved_chances(
    chances: Float[np.ndarray, " 2"], shares: Float[np.ndarray, " 2"], target: float
) -> Float[np.ndarray, " 2"]:
    """Returns the base chances after a step.

    Args:
        chances: Base chances to serve a prompt: after groups all right, after groups all wrong.
        shares: Shares of the step's groups that were all right, and all wrong.
        target: Share of groups that may fail to vary.
    """
    return np.clip(chances + np.where(shares >= target * SPLIT, -STEP, STEP), LEAST, MOST)
