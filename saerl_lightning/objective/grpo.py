"""GRPO: group-relative policy optimisation.

Departs from arXiv 2402.03300 in three places: (1) clip range low and high may differ (DAPO's clip-higher), (2) there is
no KL by default, as in later practice, so no reference model is held, (3) a sampler that is not quite the policy can be
corrected for by importance weights.
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

    Every completion weighs the same, long or short. TRL's `grpo` divides by the rows of a micro-batch, this by those of
    the step; on one micro-batch they are equal.

    Args:
        clip_low: the ratio pi / pi_old is clipped below 1 - clip_low.
        clip_high: and above 1 + clip_high.
        dual_clip: bounds the surrogate of tokens with A < 0 by dual_clip * A; null does not.
        scale_by_std: divide advantages by the group's standard deviation; false is Dr. GRPO's advantage.
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
