"""AR: tokens weighted by their probabilities."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from saerl_lightning.objective.reweighting.reweighting import TokenReweighting
from saerl_lightning.ranges import Share, require_in_range


class AR(TokenReweighting):
    """Advantage reweighting: damps tokens of low probability, whose gradients are large: w = alpha * pi + 1 - alpha.

    pi is the policy's probability of the token before the step's first update. The sampler's is taken for it, which the
    guard compares, so that no forward pass is needed before the first; with `lookahead`, where the sampler is a batch
    behind, there is one. (Source: arXiv 2505.12929; mean 1 over the step's tokens and the default as in the authors'
    code of DataFlex-RL, arXiv 2609.06107; the sampler's probability: ours.)

    Args:
        alpha: Strength of the damping; 0 weighs all tokens alike.

    Raises:
        InputError: if the strength is out of range.
    """

    def __init__(self, alpha: Share = 0.5) -> None:
        self.alpha = alpha
        require_in_range(self)

    def raw(self, probabilities: Float[Tensor, "R T"]) -> Float[Tensor, "R T"]:
        """Computes alpha * pi + 1 - alpha."""
        return self.alpha * probabilities + (1 - self.alpha)
