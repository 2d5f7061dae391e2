"""FormatReward: rewards completions that match a regular expression."""

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
        pattern: Python regular expression, such as `<answer>.+</answer>`. The dot also matches line breaks.
        whole: Whether the whole completion must match, and not only a part of it.
        weight: Weight of the reward in the weighted sum.
        deadline_s: Largest time to match a completion, in seconds. Beyond it, the reward is NaN (not graded).
        name: Name of this reward in the logs; null takes the class's.

    Raises:
        InputError: if `pattern` is not a regular expression, or `deadline_s` is not positive.
    """

    def __init__(
        self,
        pattern: str,
        whole: bool = False,
        weight: Finite = 1.0,
        deadline_s: Deadline = 1.0,
        name: str | None = None,
    ) -> None:
        try:
            # The `regex` package, because matching with `re` can't be interrupted.
            self.pattern = regex.compile(pattern, regex.DOTALL)
        except regex.error as error:
            raise InputError(f"pattern {pattern!r} is no regular expression: {error}") from error
        self.whole = whole
        self.weight = weight
        self.deadline_s = deadline_s
        self._name = name
        self.overruns = 0  # number of completions that took too long
        require_in_range(self)

    def __call__(self, prompts: Sequence[Prompt], rollouts: Rollouts) -> Float[Tensor, "P G"]:
        """Scores every completion by whether its text matches."""
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
