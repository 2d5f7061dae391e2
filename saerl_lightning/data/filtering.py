"""Random filtering: the null that a learned filter is held against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool

from saerl_lightning.data.callback import Filtering
from saerl_lightning.errors import InputError
from saerl_lightning.plan import SamplePlan
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features


class RandomFilter(Filtering):
    """Drops a share of the planned prompts at random.

    Args:
        fraction: share to drop, in [0, 1); the number is rounded to the nearest whole.
        seed: of the draw.

    Raises:
        InputError: if `fraction` is out of range.
    """

    def __init__(self, fraction: float = 0.1, seed: int = 0) -> None:
        if not 0 <= fraction < 1:
            raise InputError(f"RandomFilter.fraction is {fraction}; write the share to drop, 0 or more and below 1")
        self.fraction = fraction
        self.seed = seed

    def keep(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> Bool[np.ndarray, " N"]:
        """Keeps all but the drawn rows."""
        drawn = round(self.fraction * len(plan.rows))
        kept = np.ones(len(prompts), dtype=bool)
        kept[np.random.default_rng(self.seed).permutation(plan.rows)[:drawn]] = False
        return kept

    def reason(self) -> str:
        """Names the draw."""
        return f"random {self.fraction:g} of the prompts (seed {self.seed})"
