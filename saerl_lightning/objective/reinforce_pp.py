"""REINFORCE++: the clipped surrogate with advantages normalised over the whole batch."""

from __future__ import annotations

from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from saerl_lightning.objective.advantage import batch_advantages, group_then_batch_advantages
from saerl_lightning.objective.losses import token_mean
from saerl_lightning.objective.objective import LossInputs
from saerl_lightning.objective.policy_gradient import Clipped

ADVANTAGES = {"none": batch_advantages, "group": group_then_batch_advantages}


class ReinforcePP(Clipped):
    """Maximises the clipped surrogate of globally normalised advantages (arXiv 2501.03262).

    The mean is over the tokens of the whole step, as in the authors' OpenRLHF. There are two departures. In the paper,
    the KL in the reward of a token is that of the tokens still to come, so advantages differ between tokens; here
    `kl.where: reward` subtracts the whole completion's KL from its reward. Mean and deviation are over the batch's
    completions; OpenRLHF and verl weigh each by its length.

    Args:
        baseline: Normalisation of rewards: `none` normalises over the batch; `group` subtracts the group's mean first,
            the paper's REINFORCE++-baseline for several completions a prompt.

    Raises:
        InputError: if the clip range does not hold 1, or the dual clip lies inside it.
    """

    def __init__(
        self,
        baseline: Literal["group", "none"] = "none",
        **common: Any,
    ) -> None:
        self.baseline = baseline
        super().__init__(**common)

    def advantages(self, rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """Normalises rewards over the batch, after subtracting the group's mean if `baseline` is `group`."""
        return ADVANTAGES[self.baseline](rewards)

    def aggregate(self, values: Float[Tensor, "R T"], inputs: LossInputs) -> Float[Tensor, ""]:
        """Mean over tokens."""
        return token_mean(values, inputs.mask, inputs.step_tokens)
