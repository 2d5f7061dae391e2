"""Optional terms of every policy-gradient objective: KL penalty, entropy bonus, importance correction for the sampler."""

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
    """A KL to the frozen initial policy, taken off the loss or off the rewards.

    Args:
        weight: 0 or more; 0 holds no reference.
        estimator: k1 = log pi - log ref, k2 = (log pi - log ref)^2 / 2, k3 = ref / pi - 1 - log(ref / pi). In the loss k2
            has the gradient of the KL on fresh samples and k1 none on average; in the reward k1 is unbiased.
        where: `loss` adds the estimate of every token to the loss, with gradient; `reward` takes the sum over a
            completion off its reward, before advantages.

    Raises:
        InputError: if the weight is negative.
    """

    weight: NotNegative
    estimator: Literal["k1", "k2", "k3"] = "k3"
    where: Literal["loss", "reward"] = "loss"

    def __post_init__(self) -> None:
        require_in_range(self)

    def estimate(self, logprobs: Float[Tensor, "R T"], reference: Float[Tensor, "R T"]) -> Float[Tensor, "R T"]:
        """The estimate at each token, nats, without the weight."""
        return ESTIMATORS[self.estimator](logprobs, reference)


@dataclass(frozen=True)
class EntropyTerm:
    """What the loss makes of the policy's entropy.

    Args:
        bonus: this times the mean entropy over the step's completion tokens, in nats, is added to what is maximised.
        top_share: share of the step's completion tokens, those of highest entropy, that get a policy gradient (arXiv
            2506.01939 takes 0.2); 1 takes all.

    Raises:
        InputError: if the bonus is not finite or the share not above 0 and at most 1.
    """

    bonus: Finite = 0.0
    top_share: PositiveShare = 1.0

    def __post_init__(self) -> None:
        require_in_range(self)


@dataclass(frozen=True)
class SamplerCorrection:
    """Importance weights pi_old / pi_sampler for a sampler that is not quite the policy.

    Args:
        level: `token` weighs every token by its own ratio, `sequence` by that of the completion (the product).
        mode: `truncate` moves a weight to the nearest end of floor..cap, `mask` sets one outside it to 0.
        cap: largest weight, at least 1.
        floor: smallest weight, at most 1; null has none.

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
        """The weights, and indicators (0 or 1) of the tokens whose weight was outside floor..cap; no gradient."""
        old, sampler = inputs.old_logprobs, inputs.sampler_logprobs
        ratio = losses.sampler_ratio(old, sampler, inputs.mask, self.level == "sequence")
        outside = losses.outside(ratio, self.floor, self.cap)  # (R, T)
        kept = ratio.masked_fill(outside, 0.0) if self.mode == "mask" else ratio.clamp(self.floor, self.cap)
        return kept, outside.to(ratio.dtype)
