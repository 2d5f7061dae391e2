"""LastRate: the share of right answers in a prompt's latest group, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from saerl_lightning.online.beliefs.belief import Beta
from saerl_lightning.online.beliefs.counted import Counted
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features

EDGE = 1e-9  # of an answer, so that a group that is all right or all wrong still gives a Beta distribution


class LastRate(Counted):
    """Believes each prompt's latest group alone: Beta(right, wrong) of that group, whose mean is the measured rate.

    A prompt that was never served is unknown: Beta(1, 1). In a run that serves each prompt once an epoch it is the last
    epoch's rate. (The belief behind prime-rl's pools and open-instruct's exclusion, by their authors' code; ours as
    a Beta distribution.)
    """

    keep = 0.0

    def begin(self, prompts: Sequence[Prompt], features: Features | None) -> None:
        """Sets every prompt to unknown."""
        self._begin_with(np.ones((len(prompts), 2)))

    def beta(self, rows: Int[np.ndarray, " n"]) -> Beta:
        """Returns the latest group's counts, or the uniform distribution without one."""
        counts = self._counts[rows]
        seen = counts.sum(1, keepdims=True) > 0
        a, b = np.where(seen, counts + EDGE, self._prior[rows]).T
        return a, b
