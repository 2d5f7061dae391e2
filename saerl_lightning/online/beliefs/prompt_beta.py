"""PromptBeta: a Beta distribution for every prompt, which forgets and learns from the prompt's own groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from saerl_lightning.online.beliefs.counted import Counted
from saerl_lightning.ranges import Positive, Share, require_in_range
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features


class PromptBeta(Counted):
    """Counts right and wrong answers of every prompt for itself; a prompt that was never served keeps the prior.

    With each new group the older counts are multiplied by `keep`, since the policy has changed. (Source: MoPPS, arXiv
    2507.04632, equations and the authors' code, where `keep` is 1 - its rate of forgetting.)

    Args:
        right: Number of right answers that the prior counts (a0).
        wrong: Number of wrong answers that the prior counts (b0).
        keep: Share of a prompt's older counts that its next group keeps; 1 forgets nothing.

    Raises:
        InputError: if a number is out of range.
    """

    def __init__(self, right: Positive = 1.0, wrong: Positive = 1.0, keep: Share = 1.0) -> None:
        self.right = right
        self.wrong = wrong
        self.keep = keep
        require_in_range(self)

    def begin(self, prompts: Sequence[Prompt], features: Features | None) -> None:
        """Sets every prompt to the prior."""
        self._begin_with(np.tile([self.right, self.wrong], (len(prompts), 1)))
