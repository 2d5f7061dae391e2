"""CISPO: clips importance weights instead of the surrogate, so that no token loses its gradient."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from saerl_lightning.errors import InputError
from saerl_lightning.objective.advantage import group_advantages
from saerl_lightning.objective.losses import token_mean
from saerl_lightning.objective.objective import LossInputs
from saerl_lightning.objective.policy_gradient import PolicyGradient
from saerl_lightning.ranges import NotNegative, Share


class CISPO(PolicyGradient):
    """Maximises sg(clip(rho, floor, cap)) A log pi, averaged over tokens (MiniMax-M1, arXiv 2506.13585, eq. 4).

    A clipped surrogate has no gradient at clipped tokens; a clipped weight only bounds it. The paper writes the range
    as 1 - eps_low and 1 + eps_high and sets no lower bound; TRL's `epsilon_high` is `ratio_cap` itself, without a
    floor. The value of this loss has no meaning, because it contains log pi; its gradient is right. The clip metrics
    count the weights that were changed.

    Args:
        ratio_cap: Largest importance weight of a token.
        ratio_floor: Smallest importance weight of a token; 0 sets no floor.

    Raises:
        InputError: if 1 is not between floor and cap.
    """

    def __init__(
        self,
        ratio_cap: NotNegative = 5.0,
        ratio_floor: Share = 0.0,
        **common: Any,
    ) -> None:
        if not 0 <= ratio_floor <= 1 <= ratio_cap:
            raise InputError(f"ratio range is {ratio_floor}..{ratio_cap}; write 0 <= ratio_floor <= 1 <= ratio_cap")
        self.ratio_cap = ratio_cap
        self.ratio_floor = ratio_floor
        super().__init__(**common)

    def cut(
        self, ratio: Float[Tensor, "R T"], advantages: Float[Tensor, " R"]
    ) -> tuple[Float[Tensor, "R T"], Float[Tensor, "R T"]]:
        """Marks tokens whose weight was raised to the floor or lowered to the cap, except rows with advantage 0."""
        weighed = (advantages != 0)[:, None]
        low, high = (ratio < self.ratio_floor) & weighed, (ratio > self.ratio_cap) & weighed
        return low.to(ratio.dtype), high.to(ratio.dtype)

    def advantages(self, rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """Group-relative advantages."""
        return group_advantages(rewards)

    def gain(self, inputs: LossInputs) -> Float[Tensor, "R T"]:
        """Weighted log-probability (eq. 4)."""
        weight = self.ratio(inputs).detach().clamp(self.ratio_floor, self.ratio_cap)
        return weight * inputs.advantages[:, None] * inputs.logprobs

    def aggregate(self, values: Float[Tensor, "R T"], inputs: LossInputs) -> Float[Tensor, ""]:
        """Mean over tokens."""
        return token_mean(values, inputs.mask, inputs.step_tokens)
