"""GSPO: group sequence policy optimisation, which clips the ratios of whole completions."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from saerl_lightning.objective import losses
from saerl_lightning.objective.advantage import group_advantages
from saerl_lightning.objective.losses import row_mean
from saerl_lightning.objective.objective import LossInputs, Weighed
from saerl_lightning.objective.policy_gradient import Clipped, require_all_tokens
from saerl_lightning.ranges import NotNegative, Share


class GSPO(Clipped):
    """Maximises min(s A, clip(s) A), with s = exp(mean_t log rho) of a completion (arXiv 2507.18071, eq. 5, 7).

    A KL in the loss and a token-level correction act on tokens and are averaged over the completion. TRL's form is
    `importance_sampling_level: sequence` with `loss_type: grpo`, divided by the rows of a micro-batch; this class
    divides by those of the step. TRL accepts a top-entropy share and scales whole completions by it; this class refuses
    one.

    Args:
        clip_low: Distance below 1 at which the ratio pi / pi_old is clipped.
        clip_high: Distance above 1 at which the ratio pi / pi_old is clipped.

    Raises:
        InputError: if the clip range does not hold 1, the dual clip lies inside it, or `entropy.top_share` is below 1.
    """

    def __init__(self, clip_low: Share = 3e-4, clip_high: NotNegative = 4e-4, **common: Any) -> None:
        super().__init__(clip_low=clip_low, clip_high=clip_high, **common)
        require_all_tokens(self.entropy, "GSPO")

    def advantages(self, rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """Group-relative advantages (eq. 6)."""
        return group_advantages(rewards)

    @property
    def weighs(self) -> Weighed:
        """Rows: a completion has one ratio."""
        return "rows"

    def ratio(self, inputs: LossInputs) -> Float[Tensor, "R T"]:
        """The completion's length-normalised ratio, repeated at each of its tokens."""
        return losses.sequence_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask, per_token=True)

    def aggregate(self, values: Float[Tensor, "R T"], inputs: LossInputs) -> Float[Tensor, ""]:
        """Mean over rows of means over tokens."""
        return row_mean(values, inputs.mask, inputs.step_rows)
