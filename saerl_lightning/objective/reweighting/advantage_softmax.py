"""AdvantageSoftmax: completions weighted by a softmax of |advantage|."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from saerl_lightning.objective.reweighting.reweighting import RowReweighting
from saerl_lightning.ranges import Positive, require_in_range


class AdvantageSoftmax(RowReweighting):
    """Weighs completions in proportion to e^(|A| / temperature), over the whole step.

    (Source: equation and defaults of the authors' code of DataFlex-RL, arXiv 2609.06107.)

    Args:
        temperature: Temperature of the softmax; lower ones prefer large advantages more.

    Raises:
        InputError: if the temperature is not above 0.
    """

    def __init__(self, temperature: Positive = 1.0) -> None:
        self.temperature = temperature
        require_in_range(self)

    def raw(self, sizes: Float[Tensor, " n"], labels: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Computes the softmax."""
        return (sizes / self.temperature).softmax(0)
