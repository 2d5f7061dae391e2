"""RLOO: REINFORCE with a leave-one-out baseline; a completion is one action."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from saerl_lightning.objective import losses
from saerl_lightning.objective.advantage import leave_one_out_advantages
from saerl_lightning.objective.losses import row_mean
from saerl_lightning.objective.objective import LossInputs
from saerl_lightning.objective.policy_gradient import Clipped, require_all_tokens, require_clip_range
from saerl_lightning.objective.terms import EntropyTerm, KLPenalty, SamplerCorrection
from saerl_lightning.ranges import NotNegative, Positive, Share, require_in_range


class RLOO(Clipped):
    """Maximises min(s A, clip(s) A), s the product of a completion's token ratios and A its reward minus the others' mean.

    The paper (arXiv 2402.14740) is plain REINFORCE, the gradient A grad sum_t log pi. On the first update of a
    batch s is 1 and this is that gradient; on later ones s keeps it unbiased and the clip bounds it, as in TRL's RLOO
    trainer. The KL belongs in the reward there and in the paper: `kl: {estimator: k1, where: reward}`. A token-level
    correction is averaged over a completion.

    Args:
        clip_low: the ratio is clipped below 1 - clip_low.
        clip_high: and above 1 + clip_high.
        dual_clip: bounds the surrogate of completions with A < 0 by dual_clip * A; null does not.
        kl: penalty for leaving the frozen initial policy; null holds no reference.
        entropy: bonus; null leaves entropy alone.
        correction: weights for a sampler that is not quite the policy; null does not correct.

    Raises:
        InputError: if the clip range does not hold 1, the dual clip lies inside it, or `entropy.top_share` is below 1.
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
        require_all_tokens(entropy, "RLOO")
        self.clip_low = clip_low
        self.clip_high = clip_high
        self.dual_clip = dual_clip
        self.kl = kl
        self.entropy = entropy
        self.correction = correction
        require_in_range(self)

    def advantages(self, rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """Rewards minus the mean of the others in their group."""
        return leave_one_out_advantages(rewards)

    def ratio(self, inputs: LossInputs) -> Float[Tensor, "R T"]:
        """The completion's ratio, the product over tokens, at each of them."""
        return losses.sequence_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask, per_token=False)

    def aggregate(self, values: Float[Tensor, "R T"], inputs: LossInputs) -> Float[Tensor, ""]:
        """Mean over rows; values that differ between tokens are averaged first."""
        return row_mean(values, inputs.mask, inputs.step_rows)
