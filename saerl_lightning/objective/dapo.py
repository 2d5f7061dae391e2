"""DAPO: decoupled clip and dynamic sampling policy optimisation.

This module has its clip, its mean over tokens and overlong filtering. Dynamic sampling is in
`training.rounds.dynamic_sampling`, the penalty of overlong completions in `reward.length`.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from saerl_lightning.objective.advantage import group_advantages
from saerl_lightning.objective.losses import token_mean
from saerl_lightning.objective.objective import LossInputs
from saerl_lightning.objective.policy_gradient import Clipped
from saerl_lightning.ranges import NotNegative


class DAPO(Clipped):
    """Maximises the clipped surrogate, with separate lower and upper clip, averaged over tokens (2503.14476, eq. 8).

    The mean is over all tokens of the step, so every token has the same weight, as in TRL's `dapo`. The paper is arXiv
    2503.14476.

    Args:
        clip_high: Distance above 1 at which the ratio pi / pi_old is clipped; more than clip_low lets unlikely tokens
            gain probability.
        mask_truncated: Whether completions that `max_tokens` cut off are left out of the loss (section 3.4, overlong
            filtering) and out of their group's mean and deviation; TRL keeps them in the latter.

    Raises:
        InputError: if the clip range does not hold 1, or the dual clip lies inside it.
    """

    def __init__(
        self,
        clip_high: NotNegative = 0.28,
        mask_truncated: bool = False,
        **common: Any,
    ) -> None:
        self.mask_truncated = mask_truncated
        super().__init__(clip_high=clip_high, **common)

    @property
    def masks_truncated(self) -> bool:
        """Whether `mask_truncated` is set."""
        return self.mask_truncated

    def advantages(self, rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """Group-relative advantages (eq. 9)."""
        return group_advantages(rewards)

    def aggregate(self, values: Float[Tensor, "R T"], inputs: LossInputs) -> Float[Tensor, ""]:
        """Mean over tokens."""
        return token_mean(values, inputs.mask, inputs.step_tokens)
