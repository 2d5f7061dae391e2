"""Does a completion have the asked-for form?"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from saerl_lightning.errors import InputError
from saerl_lightning.ranges import Finite, require_in_range
from saerl_lightning.records import Prompt, Rollouts
from saerl_lightning.reward.reward import Reward


class FormatReward(Reward):
    r"""Gives 1 to a completion that a regular expression matches, else 0.

    Args:
        pattern: a Python regular expression in which a dot matches a line break too, as in `<answer>.+</answer>`.
        whole: whether the whole completion must match, not only a part of it.
        weight: factor of this reward in the sum that is maximised.

    Raises:
        InputError: if `pattern` is no regular expression.
    """

    def __init__(self, pattern: str, whole: bool = False, weight: Finite = 1.0) -> None:
        try:
            self.pattern = re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise InputError(f"pattern {pattern!r} is no regular expression: {error}") from error
        self.whole = whole
        self.weight = weight
        require_in_range(self)

    def __call__(self, prompts: Sequence[Prompt], rollouts: Rollouts) -> Float[Tensor, "P G"]:
        """Matches every completion's text."""
        match = self.pattern.fullmatch if self.whole else self.pattern.search
        scores = [float(match(text) is not None) for text in rollouts.texts]
        return torch.tensor(scores, device=rollouts.mask.device).view(len(prompts), rollouts.group_size)
