"""REINFORCE++: the clipped surrogate of advantages normalised over the whole batch."""

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

    Tokens of the whole step are averaged, as in the authors' OpenRLHF. Two departures. The paper's KL in the reward is
    that of the tokens still to come, so that advantages differ between tokens; here `kl.where: reward` takes the whole
    completion's KL off its reward. And the mean and deviation are over the batch's completions, where OpenRLHF and verl
    weigh each by its length.

    Args:
        baseline: `none` normalises rewards over the batch; `group` takes the group's mean off first, the paper's
            REINFORCE++-baseline, for several completions a prompt.
        clip_low: the ratio pi / pi_old is clipped below 1 - clip_low.
        clip_high: and above 1 + clip_high.
        dual_clip: bounds the surrogate of tokens with A < 0 by dual_clip * A; null does not.
        kl: penalty for leaving the frozen initial policy; null holds no reference.
        entropy: bonus, and share of tokens that get a gradient; null leaves entropy alone.
        correction: weights for a sampler that is not quite the policy; null does not correct.

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
        """Rewards, or rewards minus their group's mean, normalised over the batch."""
        return ADVANTAGES[self.baseline](rewards)

    def aggregate(self, values: Float[Tensor, "R T"], inputs: LossInputs) -> Float[Tensor, ""]:
        """Mean over tokens."""
        return token_mean(values, inputs.mask, inputs.step_tokens)
