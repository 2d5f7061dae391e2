"""GSPO: group sequence policy optimisation, which clips whole completions."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from saerl_lightning.objective import losses
from saerl_lightning.objective.advantage import group_advantages
from saerl_lightning.objective.losses import row_mean
from saerl_lightning.objective.objective import LossInputs
from saerl_lightning.objective.policy_gradient import Clipped, require_all_tokens, require_clip_range
from saerl_lightning.objective.terms import EntropyTerm, KLPenalty, SamplerCorrection
from saerl_lightning.ranges import NotNegative, Positive, Share, require_in_range


class GSPO(Clipped):
    """Maximises min(s A, clip(s) A) with one ratio s = exp(mean_t log rho) a completion (arXiv 2507.18071, eq. 5 and 7).

    A KL in the loss and a token-level correction still act on tokens; the mean over a completion averages them. TRL is
    `importance_sampling_level: sequence` with `loss_type: grpo`, divided by a micro-batch's rows; this divides by the
    step's. TRL takes a top-entropy share here and scales whole completions by it; this refuses one.

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
        clip_low: Share = 3e-4,
        clip_high: NotNegative = 4e-4,
        dual_clip: Positive | None = None,
        kl: KLPenalty | None = None,
        entropy: EntropyTerm | None = None,
        correction: SamplerCorrection | None = None,
    ) -> None:
        require_clip_range(clip_low, clip_high, dual_clip)
        require_all_tokens(entropy, "GSPO")
        self.clip_low = clip_low
        self.clip_high = clip_high
        self.dual_clip = dual_clip
        self.kl = kl
        self.entropy = entropy
        self.correction = correction
        require_in_range(self)

    def advantages(self, rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """Group-relative advantages (eq. 6)."""
        return group_advantages(rewards)

    def ratio(self, inputs: LossInputs) -> Float[Tensor, "R T"]:
        """The completion's ratio, length-normalised, at each of its tokens."""
        return losses.sequence_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask, per_token=True)

    def aggregate(self, values: Float[Tensor, "R T"], inputs: LossInputs) -> Float[Tensor, ""]:
        """Mean over rows of means over tokens."""
        return row_mean(values, inputs.mask, inputs.step_rows)
