"""REINFORCE++: the clipped surrogate with advantages normalised over the whole batch."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from saerl_lightning.objective.advantage import batch_advantages, group_then_batch_advantages
from saerl_lightning.objective.losses import token_mean
from saerl_lightning.objective.objective import LossInputs
from saerl_lightning.objective.policy_gradient import Clipped, require_clip_range
from saerl_lightning.objective.terms import EntropyTerm, KLPenalty, SamplerCorrection
from saerl_lightning.ranges import NotNegative, Positive, Share, require_in_range

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
        clip_low: Distance below 1 at which the ratio pi / pi_old is clipped.
        clip_high: Distance above 1 at which the ratio pi / pi_old is clipped.
        dual_clip: Bound of the surrogate at dual_clip * A for tokens with A < 0; null sets no bound.
        kl: KL penalty toward the frozen initial policy; null holds no reference.
        entropy: Entropy bonus, and share of tokens that get a gradient; null leaves entropy out of the loss.
        correction: Importance weights for a sampler whose probabilities differ from the policy's; null applies none.

    Raises:
        InputError: if the clip range does not hold 1, or the dual clip lies inside it.
    """

    def __init__(
        self,
        baseline: Literal["group", "none"] = "none",
        clip_low: Share = 0.2,
        clip_high: NotNegative = 0.2,
        dual_clip: Positive | None = None,
        kl: KLPenalty | None = None,
        entropy: EntropyTerm | None = None,
        correction: SamplerCorrection | None = None,
    ) -> None:
        require_clip_range(clip_low, clip_high, dual_clip)
        self.baseline = baseline
        self.clip_low = clip_low
        self.clip_high = clip_high
        self.dual_clip = dual_clip
        self.kl = kl
        self.entropy = entropy
        self.correction = correction
        require_in_range(self)

    def advantages(self, rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """Normalises rewards over the batch, after subtracting the group's mean if `baseline` is `group`."""
        return ADVANTAGES[self.baseline](rewards)

    def aggregate(self, values: Float[Tensor, "R T"], inputs: LossInputs) -> Float[Tensor, ""]:
        """Mean over tokens."""
        return token_mean(values, inputs.mask, inputs.step_tokens)
