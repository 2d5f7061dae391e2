"""Dr.GRPO: GRPO done right, without the biases of its two divisions."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from saerl_lightning.objective.advantage import group_advantages
from saerl_lightning.objective.losses import constant_length
from saerl_lightning.objective.objective import LossInputs
from saerl_lightning.objective.policy_gradient import Clipped, require_clip_range
from saerl_lightning.objective.terms import EntropyTerm, KLPenalty, SamplerCorrection
from saerl_lightning.ranges import NotNegative, Positive, Share, require_in_range


class DrGRPO(Clipped):
    """Maximises the clipped surrogate of A = r - group mean, summed over tokens (arXiv 2503.20783, section 3.2).

    Dividing by a completion's length favours long wrong ones, dividing by the group's deviation favours very easy and
    very hard prompts. Here the sum is divided by a constant, rows times the longest length there can be, as in the
    authors' code: it only scales the learning rate. TRL's `dr_grpo` counts a micro-batch's rows, this the step's; and TRL
    divides advantages by the deviation unless `scale_rewards` is false.

    Args:
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
        clip_low: Share = 0.2,
        clip_high: NotNegative = 0.2,
        dual_clip: Positive | None = None,
        kl: KLPenalty | None = None,
        entropy: EntropyTerm | None = None,
        correction: SamplerCorrection | None = None,
    ) -> None:
        require_clip_range(clip_low, clip_high, dual_clip)
        self.clip_low = clip_low
        self.clip_high = clip_high
        self.dual_clip = dual_clip
        self.kl = kl
        self.entropy = entropy
        self.correction = correction
        require_in_range(self)

    def advantages(self, rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """Rewards minus the mean of their group."""
        return group_advantages(rewards, scale_by_std=False)

    def aggregate(self, values: Float[Tensor, "R T"], inputs: LossInputs) -> Float[Tensor, ""]:
        """Sum over tokens by rows times `max_tokens`."""
        return constant_length(values, inputs.mask, inputs.step_rows, inputs.max_tokens)
