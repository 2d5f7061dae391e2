"""PredictedWeights: completions weighted by what is believed of their prompt's pass rate."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from saerl_lightning.objective.reweighting.label_weights import powers
from saerl_lightning.objective.reweighting.reweighting import RowReweighting
from saerl_lightning.ranges import Power, require_in_range


class PredictedWeights(RowReweighting):
    """Weighs completions in proportion to a power of what `data.online` predicted of their prompt before the step. (Ours.)

    The prediction is that of the belief (of `Selection`, also inside a `DomainMix`), which learns from the step only
    afterwards.

    Args:
        by: What is weighed by, with p the predicted mean pass rate: `chance`, the chance that the group varies;
            `learnability`, p(1 - p); `difficulty`, 1 - p.
        power: Power of it; 1 weighs in proportion to it, 0 all completions alike.

    Raises:
        InputError: if the power is out of range.
    """

    def __init__(self, by: Literal["chance", "learnability", "difficulty"] = "chance", power: Power = 1.0) -> None:
        self.by = by
        self.power = power
        require_in_range(self)

    @property
    def reads(self) -> str | None:
        """The predicted chance, or the predicted pass rate, by its column in `served.parquet`."""
        return "chance_predicted" if self.by == "chance" else "pass_rate_predicted"

    @property
    def predicted(self) -> bool:
        """True."""
        return True

    def raw(self, sizes: Float[Tensor, " n"], labels: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Computes the powers."""
        worth = {"chance": labels, "learnability": labels * (1 - labels), "difficulty": 1 - labels}[self.by]
        return powers(worth, self.power)
