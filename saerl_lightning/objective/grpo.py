"""GRPO: group-relative policy optimisation.

Departs from arXiv 2402.03300 in three places: (1) clip range low and high may differ (DAPO's clip-higher), (2) the KL
weight is 0 by default, as in later practice, so no reference model is held, (3) a sampler that is not quite the policy
can be corrected for by truncated importance weights.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from saerl_lightning.errors import InputError
from saerl_lightning.objective import surrogate
from saerl_lightning.objective.advantage import group_advantages
from saerl_lightning.objective.aggregation import row_mean, token_mean
from saerl_lightning.objective.objective import LossInputs, Objective

KL = {"k1": surrogate.kl_k1, "k2": surrogate.kl_k2, "k3": surrogate.kl_k3}


class GRPO(Objective):
    """Maximises the clipped surrogate of group-relative advantages (arXiv 2402.03300, eq. 3).

    Args:
        clip_low: the ratio pi / pi_old is clipped below 1 - clip_low.
        clip_high: and above 1 + clip_high.
        scale_by_std: divide advantages by the group's standard deviation; false is Dr. GRPO's advantage.
        kl_weight: weight of the KL to the frozen initial policy in the loss; 0 holds no reference.
        kl_estimator: k1, k2 or k3.
        importance_cap: weigh tokens by min(pi_old / pi_sampler, cap); null does not correct.
    """

    def __init__(
        self,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        scale_by_std: bool = True,
        kl_weight: float = 0.0,
        kl_estimator: Literal["k1", "k2", "k3"] = "k3",
        importance_cap: float | None = None,
    ) -> None:
        if not 0 <= clip_low <= 1 or clip_high < 0:
            raise InputError(f"clip range is low {clip_low}, high {clip_high}; write 0 <= low <= 1 and high >= 0")
        if kl_weight < 0:
            raise InputError(f"kl_weight is {kl_weight}; write 0 (no reference) or more")
        self.clip_low = clip_low
        self.clip_high = clip_high
        self.scale_by_std = scale_by_std
        self.kl_weight = kl_weight
        self.kl_estimator = kl_estimator
        self.importance_cap = importance_cap

    @property
    def needs_reference(self) -> bool:
        """Whether the KL has a weight."""
        return self.kl_weight > 0

    @property
    def corrects_sampler(self) -> bool:
        """Whether `importance_cap` is set."""
        return self.importance_cap is not None

    def advantages(self, rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """Group-relative advantages (eq. 3)."""
        return group_advantages(rewards, self.scale_by_std)

    def __call__(self, inputs: LossInputs) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """Negative clipped surrogate plus weighted KL, each a mean over rows of means over tokens."""
        ratio = (inputs.logprobs - inputs.old_logprobs).exp()  # (R, T)
        gain = surrogate.clipped_surrogate(ratio, inputs.advantages, self.clip_low, self.clip_high)
        if self.importance_cap is not None:
            gain = gain * surrogate.truncated_importance(
                inputs.old_logprobs, inputs.sampler_logprobs, self.importance_cap
            )
        loss = -row_mean(gain, inputs.mask, inputs.step_rows)
        metrics = self._clip_metrics(ratio.detach(), inputs)
        if inputs.reference is not None:
            kl = KL[self.kl_estimator](inputs.logprobs, inputs.reference)
            loss = loss + self.kl_weight * row_mean(kl, inputs.mask, inputs.step_rows)
            metrics["policy/kl"] = token_mean(kl.detach(), inputs.mask, inputs.step_tokens)
        return loss, metrics

    def _clip_metrics(self, ratio: Float[Tensor, "R T"], inputs: LossInputs) -> dict[str, Float[Tensor, ""]]:
        low, high = surrogate.clipped(ratio, inputs.advantages, self.clip_low, self.clip_high)
        means = {"policy/clip_low_frac": low, "policy/clip_high_frac": high, "policy/ratio_mean": ratio}
        metrics = {name: token_mean(value, inputs.mask, inputs.step_tokens) for name, value in means.items()}
        if not inputs.mask.any():  # every grader of these rows failed
            return metrics
        completion = ratio[inputs.mask]
        return metrics | {"policy/ratio/min": completion.min(), "policy/ratio/max": completion.max()}
