"""GRPO without its two divisions, by the completion's length and by the group's deviation (Dr. GRPO)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from saerl_lightning.objective.advantage import group_advantages
from saerl_lightning.objective.losses import constant_length
from saerl_lightning.objective.objective import LossInputs
from saerl_lightning.objective.policy_gradient import Clipped


class DrGRPO(Clipped):
    """Maximises the clipped surrogate of A = r - group mean, summed over tokens (arXiv 2503.20783, section 3.2).

    Division by a completion's length favours long wrong completions; division by the group's deviation favours very
    easy and very hard prompts. Here the sum is divided by a constant, rows times the largest possible length, as in the
    authors' code; this only scales the learning rate. TRL's `dr_grpo` counts the rows of a micro-batch, this class
    those of the step. TRL also divides advantages by the deviation unless `scale_rewards` is false.


    Raises:
        InputError: if the clip range does not hold 1, or the dual clip lies inside it.
    """

    def advantages(self, rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """Rewards minus the mean of their group."""
        return group_advantages(rewards, scale_by_std=False)

    def aggregate(self, values: Float[Tensor, "R T"], inputs: LossInputs) -> Float[Tensor, ""]:
        """Sum over tokens by rows times `max_tokens`."""
        return constant_length(values, inputs.mask, inputs.step_rows, inputs.max_tokens)
