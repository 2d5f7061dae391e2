"""GRPO: group-relative policy optimisation.

It differs from arXiv 2402.03300 in three ways: (1) the lower and upper clip range may differ (DAPO's clip-higher), (2)
there is no KL by default, as in later practice, so no reference model is held, (3) importance weights can correct for a
sampler that differs from the policy.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from saerl_lightning.objective.advantage import group_advantages
from saerl_lightning.objective.losses import row_mean
from saerl_lightning.objective.objective import LossInputs
from saerl_lightning.objective.policy_gradient import Clipped, require_clip_range
from saerl_lightning.objective.terms import EntropyTerm, KLPenalty, SamplerCorrection
from saerl_lightning.ranges import NotNegative, Positive, Share, require_in_range


class GRPO(Clipped):
    """Maximises the clipped surrogate of group-relative advantages (arXiv 2402.03300, eq. 3).

    Every completion has the same weight, long or short. TRL's `grpo` divides by the rows of a micro-batch, this class
    by those of the step; with one micro-batch both are equal.

    Args:
        clip_low: Distance below 1 at which the ratio pi / pi_old is clipped.
        clip_high: Distance above 1 at which the ratio pi / pi_old is clipped.
        dual_clip: Bound of the surrogate at dual_clip * A for tokens with A < 0; null sets no bound.
        scale_by_std: Whether advantages are divided by the group's standard deviation; false gives Dr. GRPO's
            advantage.
        kl: KL penalty toward the frozen initial policy; null holds no reference.
        entropy: Entropy bonus, and share of tokens that get a gradient; null leaves entropy out of the loss.
        correction: Importance weights for a sampler whose probabilities differ from the policy's; null applies none.

    Raises:
        InputError: if the clip range does not hold 1, or the dual clip lies inside it.
    """

    def __init__(
        self,
        clip_low: Share = 0.2,
        clip_high: NotNegative = 0.2,
        dual_clip: Positive | None = None,
        scale_by_std: bool = True,
        kl: KLPenalty | None = None,
        entropy: EntropyTerm | None = None,
        correction: SamplerCorrection | None = None,
    ) -> None:
        require_clip_range(clip_low, clip_high, dual_clip)
        self.clip_low = clip_low
        self.clip_high = clip_high
        self.dual_clip = dual_clip
        self.scale_by_std = scale_by_std
        self.kl = kl
        self.entropy = entropy
        self.correction = correction
        require_in_range(self)

    def advantages(self, rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """Group-relative advantages (section 4.1.2)."""
        return group_advantages(rewards, self.scale_by_std)

    def aggregate(self, values: Float[Tensor, "R T"], inputs: LossInputs) -> Float[Tensor, ""]:
        """Mean over rows of means over tokens."""
        return row_mean(values, inputs.mask, inputs.step_rows)
