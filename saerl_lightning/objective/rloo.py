"""RLOO: REINFORCE with a leave-one-out baseline, in which a completion is one action."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from saerl_lightning.objective import losses
from saerl_lightning.objective.advantage import leave_one_out_advantages
from saerl_lightning.objective.losses import row_mean
from saerl_lightning.objective.objective import LossInputs, Weighed
from saerl_lightning.objective.policy_gradient import Clipped, require_all_tokens


class RLOO(Clipped):
    """Maximises min(s A, clip(s) A): s is the product of token ratios, A the reward minus the others' mean.

    The paper (arXiv 2402.14740) is plain REINFORCE, with gradient A grad sum_t log pi. On the first update of a batch s
    is 1 and the gradient is the same. On later updates s keeps it unbiased and the clip bounds it, as in TRL's RLOO
    trainer. There and in the paper the KL is part of the reward: `kl: {estimator: k1, where: reward}`. A token-level
    correction is averaged over a completion.


    Raises:
        InputError: if the clip range does not hold 1, the dual clip lies inside it, or `entropy.top_share` is below 1.
    """

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        require_all_tokens(self.entropy, "RLOO")

    def advantages(self, rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """Subtracts the mean of the others in the group from each reward."""
        return leave_one_out_advantages(rewards)

    @property
    def weighs(self) -> Weighed:
        """Rows: a completion has one ratio."""
        return "rows"

    def ratio(self, inputs: LossInputs) -> Float[Tensor, "R T"]:
        """The completion's ratio, a product over tokens, repeated at each of its tokens."""
        return losses.sequence_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask, per_token=False)

    def aggregate(self, values: Float[Tensor, "R T"], inputs: LossInputs) -> Float[Tensor, ""]:
        """Mean over rows; values that differ between tokens are averaged first."""
        return row_mean(values, inputs.mask, inputs.step_rows)
