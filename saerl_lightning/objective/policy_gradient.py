"""PolicyGradient and Clipped: the loss that all objectives share, with KL, entropy and importance correction.

Advantages, gains, clips and normalisers are left to the algorithms.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saerl_lightning.errors import InputError
from saerl_lightning.objective import losses
from saerl_lightning.objective.losses import token_mean
from saerl_lightning.objective.objective import LossInputs, Objective, Weighed
from saerl_lightning.objective.terms import EntropyTerm, KLPenalty, SamplerCorrection
from saerl_lightning.ranges import NotNegative, Positive, Share, require_in_range

Metrics = dict[str, Float[Tensor, ""]]


class PolicyGradient(Objective):
    """Maximises the weighted gain of each token, minus a KL penalty and plus an entropy bonus if they are set.

    loss = - aggregate(weight * gain * top) + kl.weight * aggregate(KL) - entropy.bonus * mean entropy. Here `weight` is
    the sampler's correction times the step's reweighting, and `top` is 1 for tokens of at least `entropy_floor`, else 0.
    The normaliser counts all tokens. The mean entropy is over all completion tokens of the step; in TRL it is over the top
    tokens only, if there is a top share.

    A subclass stores its own arguments and passes the others on: `super().__init__(**common)`.

    Args:
        kl: KL penalty toward the frozen initial policy; null holds no reference.
        entropy: Entropy bonus, and share of tokens that get a gradient; null leaves entropy out of the loss.
        correction: Importance weights for a sampler whose probabilities differ from the policy's; null applies none.

    Raises:
        InputError: if a number is out of range.
    """

    def __init__(
        self,
        kl: KLPenalty | None = None,
        entropy: EntropyTerm | None = None,
        correction: SamplerCorrection | None = None,
    ) -> None:
        self.kl = kl
        self.entropy = entropy
        self.correction = correction
        require_in_range(self)

    @abstractmethod
    def gain(self, inputs: LossInputs) -> Float[Tensor, "R T"]:
        """Quantity that is maximised at each token, before the sampler's correction."""

    @abstractmethod
    def aggregate(self, values: Float[Tensor, "R T"], inputs: LossInputs) -> Float[Tensor, ""]:
        """This micro-batch's share of a mean over the step; linear in `values`."""

    def ratio(self, inputs: LossInputs) -> Float[Tensor, "R T"]:
        """The ratio pi / pi_old that the gain uses."""
        return losses.token_ratio(inputs.logprobs, inputs.old_logprobs)

    def cut(
        self, ratio: Float[Tensor, "R T"], advantages: Float[Tensor, " R"]
    ) -> tuple[Float[Tensor, "R T"], Float[Tensor, "R T"]]:
        """Marks (0 or 1) the tokens that a clip cut from below and from above; all 0 without a clip."""
        return torch.zeros_like(ratio), torch.zeros_like(ratio)

    def __call__(self, inputs: LossInputs) -> tuple[Float[Tensor, ""], Metrics]:
        """Computes the loss to minimise, a scalar with gradient, and metrics, scalars without."""
        gain = self.gain(inputs)  # (R, T)
        metrics = self._ratio_metrics(inputs)
        if self.correction is not None:
            weights, outside = self.correction.weights(inputs)
            gain = gain * weights
            metrics |= _means({"policy/correction_mean": weights, "policy/correction_capped_frac": outside}, inputs)
        if inputs.weights is not None:
            gain = gain * inputs.weights
        if self.top_entropy < 1:
            gain = gain * (inputs.entropy.detach() >= inputs.entropy_floor)
        loss = -self.aggregate(gain, inputs)
        if self.kl is not None and inputs.reference is not None:
            kl = self.kl.estimate(inputs.logprobs, inputs.reference)
            metrics |= _means({"policy/kl": kl.detach()}, inputs)
            if self._kl_in_loss:
                loss = loss + self.kl.weight * self.aggregate(kl, inputs)
        if self.entropy is not None and self.entropy_gradient:
            loss = loss - self.entropy.bonus * token_mean(inputs.entropy, inputs.mask, inputs.step_tokens)
        return loss, metrics

    # -- what the step needs to know -----------------------------------------------------------------------------------

    @property
    def needs_reference(self) -> bool:
        """Whether the KL penalty has a weight above 0."""
        return self.kl is not None and self.kl.weight > 0

    @property
    def corrects_sampler(self) -> bool:
        """Whether there is a correction."""
        return self.correction is not None

    @property
    def compares_old(self) -> bool:
        """Whether gains are made of the ratio: they are."""
        return True

    @property
    def reads_sampler(self) -> bool:
        """Whether there is a correction, or a KL that is subtracted from the rewards."""
        return self.corrects_sampler or (self.needs_reference and not self._kl_in_loss)

    @property
    def skips_zero_advantage(self) -> bool:
        """Whether there is neither a KL in the loss nor an entropy bonus, so rows with advantage 0 have no gradient."""
        return not self._kl_in_loss and not self.entropy_gradient

    @property
    def entropy_gradient(self) -> bool:
        """Whether there is an entropy bonus."""
        return self.entropy is not None and self.entropy.bonus != 0

    @property
    def top_entropy(self) -> float:
        """Share of tokens, those of highest entropy, that get a policy gradient."""
        return 1.0 if self.entropy is None else self.entropy.top_share

    @property
    def weighs(self) -> Weighed:
        """Tokens; rows in a subclass whose ratio is that of the completion."""
        return "tokens"

    def penalty(
        self, sampler_logprobs: Float[Tensor, "R T"], reference: Float[Tensor, "R T"], mask: Bool[Tensor, "R T"]
    ) -> Float[Tensor, " R"] | None:
        """Weight times the sum of the KL estimate over a completion's tokens, if the KL belongs in the reward."""
        if self.kl is None or self.kl.where != "reward":
            return None
        return self.kl.weight * (self.kl.estimate(sampler_logprobs, reference) * mask).sum(1)

    @property
    def _kl_in_loss(self) -> bool:
        return self.kl is not None and self.kl.weight > 0 and self.kl.where == "loss"

    @torch.no_grad()
    def _ratio_metrics(self, inputs: LossInputs) -> Metrics:
        ratio = self.ratio(inputs)
        low, high = self.cut(ratio, inputs.advantages)
        shares = {"policy/clip_low_frac": low, "policy/clip_high_frac": high, "policy/ratio_mean": ratio}
        lowest = ratio.masked_fill(
            ~inputs.mask, torch.inf
        ).min()  # of no tokens: what min() leaves alone, without a sync
        highest = ratio.masked_fill(~inputs.mask, -torch.inf).max()
        return _means(shares, inputs) | {"policy/ratio/min": lowest, "policy/ratio/max": highest}


def _means(values: dict[str, Float[Tensor, "R T"]], inputs: LossInputs) -> Metrics:
    return {name: token_mean(value, inputs.mask, inputs.scored_tokens) for name, value in values.items()}


def require_all_tokens(entropy: EntropyTerm | None, objective: str) -> None:
    """Refuses a top-entropy share in objectives whose ratio is that of the completion.

    Raises:
        InputError: if `entropy.top_share` is below 1.
    """
    if entropy is not None and entropy.top_share < 1:
        raise InputError(
            f"entropy.top_share is {entropy.top_share}, but {objective} has one ratio a completion, so no token can be "
            "left out of its gradient; write 1.0, or an objective of token ratios"
        )


class Clipped(PolicyGradient):
    """Gain min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), bounded by dual_clip A from below where A < 0.

    TRL's `delta` clips the ratio itself at delta before the minimum (INTELLECT-2, arXiv 2505.07291). Both give the same
    value and gradient for every dual_clip accepted here (above 1 + clip_high): for A > 0 neither changes anything, and
    for A < 0 both are max(clip(rho) A, min(rho, c) A).

    Args:
        clip_low: Distance below 1 at which the ratio pi / pi_old is clipped.
        clip_high: Distance above 1 at which the ratio pi / pi_old is clipped.
        dual_clip: Bound of the surrogate at dual_clip * A where A < 0; null sets no bound.

    Raises:
        InputError: if the clip range does not hold 1, or the dual clip lies inside it.
    """

    def __init__(
        self,
        clip_low: Share = 0.2,
        clip_high: NotNegative = 0.2,
        dual_clip: Positive | None = None,
        **common: Any,
    ) -> None:
        require_clip_range(clip_low, clip_high, dual_clip)
        self.clip_low = clip_low
        self.clip_high = clip_high
        self.dual_clip = dual_clip
        super().__init__(**common)

    def gain(self, inputs: LossInputs) -> Float[Tensor, "R T"]:
        """The clipped surrogate at each token (PPO, arXiv 1707.06347, eq. 7)."""
        ratio = self.ratio(inputs)
        return losses.clipped_surrogate(ratio, inputs.advantages, self.clip_low, self.clip_high, self.dual_clip)

    def cut(
        self, ratio: Float[Tensor, "R T"], advantages: Float[Tensor, " R"]
    ) -> tuple[Float[Tensor, "R T"], Float[Tensor, "R T"]]:
        """Marks tokens without gradient: ratio too low with A < 0, or too high with A > 0 or above the dual clip."""
        return losses.clipped(ratio, advantages, self.clip_low, self.clip_high, self.dual_clip)


def require_clip_range(low: float, high: float, dual_clip: float | None) -> None:
    """Refuses an invalid clip range.

    Raises:
        InputError: if the range does not contain 1, or the dual clip lies inside the range.
    """
    if not (0 <= low <= 1 and high >= 0):
        raise InputError(f"clip range is low {low}, high {high}; write 0 <= low <= 1 and high >= 0")
    if dual_clip is not None and not dual_clip > 1 + high:
        raise InputError(f"dual_clip is {dual_clip}; write null, or more than 1 + clip_high = {1 + high}")
