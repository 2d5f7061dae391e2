"""BNPO: TRL's `bnpo`, a mean over tokens, and the BNPO paper's Beta-normalised advantage, which share a name."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from saerl_lightning.errors import InputError
from saerl_lightning.objective.advantage import beta_advantages, group_advantages
from saerl_lightning.objective.losses import token_mean
from saerl_lightning.objective.objective import LossInputs
from saerl_lightning.objective.policy_gradient import Clipped, require_clip_range
from saerl_lightning.objective.terms import EntropyTerm, KLPenalty, SamplerCorrection
from saerl_lightning.ranges import NotNegative, Positive, Share, require_in_range


class BNPO(Clipped):
    """Maximises the clipped surrogate averaged over tokens, with group-relative or Beta-normalised advantages.

    TRL's `bnpo` divides by the tokens of each micro-batch, so its gradient depends on the split. Here the sum is
    divided by the tokens of the step; with one micro-batch both are equal. The paper (arXiv 2506.02864) defines only
    the advantage; its authors' code sums over tokens and averages over rows, with clip ranges 0.2 and 0.28 and a dual
    clip of 10.

    Args:
        clip_low: Distance below 1 at which the ratio pi / pi_old is clipped.
        clip_high: Distance above 1 at which the ratio pi / pi_old is clipped.
        dual_clip: Bound of the surrogate at dual_clip * A for tokens with A < 0; null sets no bound.
        beta_normalised: Whether r - mean is divided by a Beta density fitted to the batch's success rates (arXiv
            2506.02864) instead of by the group's deviation. Rewards must then lie between 0 and 1.
        kl: KL penalty toward the frozen initial policy; null holds no reference.
        entropy: Entropy bonus, and share of tokens that get a gradient; null leaves entropy out of the loss.
        correction: Importance weights for a sampler whose probabilities differ from the policy's; null applies none.

    Raises:
        InputError: if the clip range does not hold 1, the dual clip lies inside it, or rewards that are to be
            Beta-normalised can leave, or have left, 0..1.
    """

    def __init__(
        self,
        clip_low: Share = 0.2,
        clip_high: NotNegative = 0.2,
        dual_clip: Positive | None = None,
        beta_normalised: bool = False,
        kl: KLPenalty | None = None,
        entropy: EntropyTerm | None = None,
        correction: SamplerCorrection | None = None,
    ) -> None:
        require_clip_range(clip_low, clip_high, dual_clip)
        if beta_normalised and kl is not None and kl.where == "reward":
            raise InputError(
                "kl.where is reward, which takes rewards out of 0..1; write loss, or beta_normalised: false"
            )
        self.clip_low = clip_low
        self.clip_high = clip_high
        self.dual_clip = dual_clip
        self.beta_normalised = beta_normalised
        self.kl = kl
        self.entropy = entropy
        self.correction = correction
        require_in_range(self)

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
