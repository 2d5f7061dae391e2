"""BNPO: TRL's `bnpo`, a mean over tokens, and the BNPO paper's Beta-normalised advantage, which share a name."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saerl_lightning.errors import InputError
from saerl_lightning.objective.advantage import beta_advantages, group_advantages
from saerl_lightning.objective.losses import token_mean
from saerl_lightning.objective.objective import LossInputs
from saerl_lightning.objective.policy_gradient import Clipped


class BNPO(Clipped):
    """Maximises the clipped surrogate averaged over tokens, with group-relative or Beta-normalised advantages.

    TRL's `bnpo` divides by the tokens of each micro-batch, so its gradient depends on the split. Here the sum is
    divided by the tokens of the step; with one micro-batch both are equal. The paper (arXiv 2506.02864) defines only
    the advantage; its authors' code sums over tokens and averages over rows, with clip ranges 0.2 and 0.28 and a dual
    clip of 10.

    Args:
        beta_normalised: Whether r - mean is divided by a Beta density fitted to the batch's success rates (arXiv
            2506.02864) instead of by the group's deviation. Rewards must then lie between 0 and 1.

    Raises:
        InputError: if the clip range does not hold 1, the dual clip lies inside it, or rewards that are to be
            Beta-normalised can leave, or have left, 0..1.
    """

    def __init__(
        self,
        beta_normalised: bool = False,
        **common: Any,
    ) -> None:
        self.beta_normalised = beta_normalised
        super().__init__(**common)
        if beta_normalised and self.kl is not None and self.kl.where == "reward":
            raise InputError(
                "kl.where is reward, which takes rewards out of 0..1; write loss, or beta_normalised: false"
            )

    def advantages(self, rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """Computes group-relative or Beta-normalised advantages."""
        if not self.beta_normalised:
            return group_advantages(rewards)
        graded = rewards[rewards.isfinite()]
        if torch.any((graded < 0) | (graded > 1)):
            raise InputError(
                f"rewards lie between {graded.min():g} and {graded.max():g}; a Beta density wants weighted sums between "
                "0 and 1: change the rewards' weights, or write beta_normalised: false"
            )
        return beta_advantages(rewards)

    def aggregate(self, values: Float[Tensor, "R T"], inputs: LossInputs) -> Float[Tensor, ""]:
        """Mean over tokens."""
        return token_mean(values, inputs.mask, inputs.step_tokens)
