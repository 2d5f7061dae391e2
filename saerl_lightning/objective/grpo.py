"""GRPO: group-relative policy optimisation.

It differs from arXiv 2402.03300 in three ways: (1) the lower and upper clip range may differ (DAPO's clip-higher), (2)
there is no KL by default, as in later practice, so no reference model is held, (3) importance weights can correct for a
sampler that differs from the policy.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from saerl_lightning.objective.advantage import group_advantages
from saerl_lightning.objective.losses import row_mean
from saerl_lightning.objective.objective import LossInputs
from saerl_lightning.objective.policy_gradient import Clipped


class GRPO(Clipped):
    """Maximises the clipped surrogate of group-relative advantages (arXiv 2402.03300, eq. 3).

    Every completion has the same weight, long or short. TRL's `grpo` divides by the rows of a micro-batch, this class
    by those of the step; with one micro-batch both are equal.

    Args:
        scale_by_std: Whether advantages are divided by the group's standard deviation; false gives Dr. GRPO's
            advantage.

    Raises:
        InputError: if the clip range does not hold 1, or the dual clip lies inside it.
    """

    def __init__(
        self,
        scale_by_std: bool = True,
        **common: Any,
    ) -> None:
        self.scale_by_std = scale_by_std
        super().__init__(**common)

    def advantages(self, rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """Group-relative advantages (section 4.1.2)."""
        return group_advantages(rewards, self.scale_by_std)

    def aggregate(self, values: Float[Tensor, "R T"], inputs: LossInputs) -> Float[Tensor, ""]:
        """Mean over rows of means over tokens."""
        return row_mean(values, inputs.mask, inputs.step_rows)
