"""Does a completion have the asked-for form?"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import regex
import torch
from jaxtyping import Float
from torch import Tensor

from saerl_lightning.errors import InputError
from saerl_lightning.ranges import Deadline, Finite, require_in_range
from saerl_lightning.records import Prompt, Rollouts
from saerl_lightning.reward.reward import Reward

log = logging.getLogger(__name__)


class FormatReward(Reward):
    r"""Gives 1 to a completion that a regular expression matches, else 0.

    Args:
        pattern: a Python regular expression in which a dot matches a line break too, as in `<answer>.+</answer>`.
        whole: whether the whole completion must match, not only a part of it.
        weight: factor of this reward in the sum that is maximised.
        deadline_s: seconds one completion may take to match; past it its reward is NaN, not graded.

    Raises:
        InputError: if `pattern` is no regular expression, or `deadline_s` is not positive.
    """

    def __init__(self, pattern: str, whole: bool = False, weight: Finite = 1.0, deadline_s: Deadline = 1.0) -> None:
        try:
            self.pattern = regex.compile(pattern, regex.DOTALL)  # re's dialect; re itself can't be stopped
        except regex.error as error:
            raise InputError(f"pattern {pattern!r} is no regular expression: {error}") from error
        self.whole = whole
        self.weight = weight
        self.deadline_s = deadline_s
        self.overruns = 0  # completions that took too long
        require_in_range(self)

    def __call__(self, prompts: Sequence[Prompt], rollouts: Rollouts) -> Float[Tensor, "P G"]:
        """Matches every completion's text."""
        scores = [self._score(text) for text in rollouts.texts]
        return torch.tensor(scores, device=rollouts.mask.device).view(len(prompts), rollouts.group_size)

    def _score(self, text: str) -> float:
        match = self.pattern.fullmatch if self.whole else self.pattern.search
        try:
            return float(match(text, timeout=self.deadline_s) is not None)
        except TimeoutError:
            if not self.overruns:
                log.warning(
                    "pattern %r ran past %g s; the completion counts as failed", self.pattern.pattern, self.deadline_s
                )
            self.overruns += 1
            return math.nan
