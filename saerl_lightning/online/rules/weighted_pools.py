"""WeightedPools: draws the next prompts by the weights of pools, which divide prompts by pass rate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from saerl_lightning.errors import InputError
from saerl_lightning.online.rules.rule import Arrangement, Candidates, Rule, drawn_first
from saerl_lightning.ranges import NotNegative, Positive, Share, require_in_range

MARGIN = 1e-6  # for rounding: a rate of 2 in 10 is in the pool up to .2


class WeightedPools(Rule):
    """Draws the next batch without replacement, a prompt with chance proportional to the weight of its pool.

    Pools divide prompts by the believed pass rate: the first pool holds those up to its bound, the next those up to its own,
    and so on; rates above the last bound belong to the last pool. Prompts without a graded group have a weight of their
    own. Pools of weight 0 are served when nothing else is left. (Source: the authors' code of prime-rl, which draws with
    replacement and leaves bounds and weights to the config; the defaults are ours.)

    Args:
        bounds: Highest pass rate of each pool, in rising order.
        weights: Weight of a prompt of each pool.
        unseen: Weight of a prompt without a graded group.

    Raises:
        InputError: if bounds and weights are not equally many, bounds do not rise, or a number is out of range.
    """

    def __init__(
        self,
        bounds: Sequence[Share] = (0.2, 0.8, 1.0),
        weights: Sequence[NotNegative] = (0.5, 1.0, 0.1),
        unseen: Positive = 1.0,
    ) -> None:
        self.bounds = bounds
        self.weights = weights
        self.unseen = unseen
        require_in_range(self)
        if not len(bounds) == len(weights) > 0:
            raise InputError(
                f"WeightedPools.bounds has {len(bounds)} entries and weights {len(weights)}; write one weight a pool"
            )
        if list(bounds) != sorted(set(bounds)):
            raise InputError(f"WeightedPools.bounds is {list(bounds)}; write rising numbers, such as [0.2, 0.8, 1.0]")

    def arrange(self, left: Candidates, random: np.random.Generator) -> Arrangement:
        """Puts the drawn batch first."""
        with np.errstate(divide="ignore"):  # weight 0 is never drawn
            logits = np.log(self.weighed(left))
        return Arrangement(drawn_first(logits, left.batch_size, random))

    def weighed(self, left: Candidates) -> Float[np.ndarray, " n"]:
        """Returns the weight of each candidate."""
        pool = np.searchsorted(np.asarray(self.bounds), left.pass_rate - MARGIN, side="left")
        weights = np.asarray(self.weights, dtype=np.float64)[np.minimum(pool, len(self.bounds) - 1)]
        return np.where(left.seen > 0, weights, self.unseen)
