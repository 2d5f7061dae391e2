"""The clipped surrogate of PPO, on whose gain most algorithms build."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from saerl_lightning.errors import InputError
from saerl_lightning.objective import surrogate
from saerl_lightning.objective.objective import LossInputs
from saerl_lightning.objective.policy_gradient import PolicyGradient


class Clipped(PolicyGradient):
    """Gains min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), where A < 0 not below dual_clip A.

    TRL's `delta` clips the ratio itself at delta, before the minimum (INTELLECT-2, arXiv 2505.07291). For A > 0 both
    change nothing and for A < 0 both are max(clip(rho) A, min(rho, c) A), value and gradient, for every dual_clip that is
    accepted here, one above 1 + clip_high.
    """

    clip_low: float
    clip_high: float
    dual_clip: float | None

    def gain(self, inputs: LossInputs) -> Float[Tensor, "R T"]:
        """The clipped surrogate at each token (PPO, arXiv 1707.06347, eq. 7)."""
        ratio = self.ratio(inputs)
        return surrogate.clipped_surrogate(ratio, inputs.advantages, self.clip_low, self.clip_high, self.dual_clip)

    def cut(
        self, ratio: Float[Tensor, "R T"], advantages: Float[Tensor, " R"]
    ) -> tuple[Float[Tensor, "R T"], Float[Tensor, "R T"]]:
        """Tokens without gradient: ratio too low with A < 0; too high with A > 0, or above the dual clip with A < 0."""
        return surrogate.clipped(ratio, advantages, self.clip_low, self.clip_high, self.dual_clip)


def require_clip_range(low: float, high: float, dual_clip: float | None) -> None:
    """Refuses a clip range that is none.

    Raises:
        InputError: if the range does not hold 1, or the dual clip lies inside it.
    """
    if not (0 <= low <= 1 and high >= 0):
        raise InputError(f"clip range is low {low}, high {high}; write 0 <= low <= 1 and high >= 0")
    if dual_clip is not None and not dual_clip > 1 + high:
        raise InputError(f"dual_clip is {dual_clip}; write null, or more than 1 + clip_high = {1 + high}")
