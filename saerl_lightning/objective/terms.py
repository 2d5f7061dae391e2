"""Optional terms of every policy-gradient objective: KL penalty, entropy bonus, importance correction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from jaxtyping import Float
from torch import Tensor

from saerl_lightning.objective import losses
from saerl_lightning.objective.objective import LossInputs
from saerl_lightning.ranges import HUGE, Finite, NotNegative, PositiveShare, Range, Share, require_in_range

FromOne = Annotated[float, Range(1, HUGE)]

ESTIMATORS = {"k1": losses.kl_k1, "k2": losses.kl_k2, "k3": losses.kl_k3}


@dataclass(frozen=True)
class KLPenalty:
    """KL divergence from the frozen initial policy, as a penalty in the loss or in the rewards.

    Args:
        weight: Factor of the penalty, 0 or more; with 0 no reference is held.
        estimator: Estimator of the KL: k1 = log pi - log ref, k2 = (log pi - log ref)^2 / 2, k3 = ref / pi - 1 -
            log(ref / pi). In the loss, k2 has the gradient of the KL on fresh samples, and k1 has none on average; in
            the reward, k1 is unbiased.
        where: Place of the penalty: `loss` adds the estimate of every token to the loss, with gradient; `reward`
            subtracts its sum over a completion from the reward, before advantages.

    Raises:
        InputError: if the weight is negative.
    """

    weight: NotNegative
    estimator: Literal["k1", "k2", "k3"] = "k3"
    where: Literal["loss", "reward"] = "loss"

    def __post_init__(self) -> None:
        require_in_range(self)

    def estimate(self, logprobs: Float[Tensor, "R T"], reference: Float[Tensor, "R T"]) -> Float[Tensor, "R T"]:
        """Estimates the KL at each token in nats, without the weight."""
        return ESTIMATORS[self.estimator](logprobs, reference)


@dataclass(frozen=True)
class EntropyTerm:
    """Entropy of the policy in the loss: a bonus, and a mask of low-entropy tokens.

    Args:
        bonus: Factor of the mean entropy (nats) over the step's completion tokens, which is added to the maximised
            quantity.
        top_share: Share of the step's completion tokens, those of highest entropy, that get a policy gradient (0.2 in
            arXiv 2506.01939); 1 takes all.

    Raises:
        InputError: if the bonus is not finite or the share not above 0 and at most 1.
    """

    bonus: Finite = 0.0
    top_share: PositiveShare = 1.0

    def __post_init__(self) -> None:
        require_in_range(self)


@dataclass(frozen=True)
class SamplerCorrection:
    """Importance weights pi_old / pi_sampler for a sampler whose probabilities differ from the policy's.

    Args:
        level: Unit that is weighted: `token` weighs each token by its own ratio, `sequence` by the product over the
            completion.
        mode: Treatment of weights outside of floor to cap: `truncate` moves them to the nearest end, `mask` sets them
            to 0.
        cap: Largest weight, at least 1.
        floor: Smallest weight, at most 1; null sets no floor.

    Raises:
        InputError: if 1 is not between floor and cap.
    """

    level: Literal["token", "sequence"] = "token"
    mode: Literal["truncate", "mask"] = "truncate"
    cap: FromOne = 2.0
    floor: Share | None = None

    def __post_init__(self) -> None:
        require_in_range(self)

    def weights(self, inputs: LossInputs) -> tuple[Float[Tensor, "R T"], Float[Tensor, "R T"]]:
        """Computes the weights, and marks (0 or 1) tokens whose weight was outside floor to cap; no gradient."""
        old, sampler = inputs.old_logprobs, inputs.sampler_logprobs
        ratio = losses.sampler_ratio(old, sampler, inputs.mask, self.level == "sequence")
        outside = losses.outside(ratio, self.floor, self.cap)  # (R, T)
        kept = ratio.masked_fill(outside, 0.0) if self.mode == "mask" else ratio.clamp(self.floor, self.cap)
        return kept, outside.to(ratio.dtype)
