"""PER: completions weighted by a power of |advantage|."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from saerl_lightning.objective.reweighting.reweighting import RowReweighting
from saerl_lightning.ranges import Power, require_in_range


class PER(RowReweighting):
    """Weighs completions in proportion to |A|^alpha, as prioritised experience replay draws them.

    (Source: arXiv 1511.05952, in the form and with the default of the authors' code of DataFlex-RL, arXiv 2609.06107.)

    Args:
        alpha: Power of |A|; 0 weighs all completions alike.

    Raises:
        InputError: if the power is out of range.
    """

    def __init__(self, alpha: Power = 0.5) -> None:
        self.alpha = alpha
        require_in_range(self)

    def raw(self, sizes: Float[Tensor, " n"], labels: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Computes the powers."""
        return sizes**self.alpha
