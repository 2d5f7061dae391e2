"""TopAdvantages: the completions of the step with the largest |advantage|."""

from __future__ import annotations

import math

from jaxtyping import Bool
from torch import Tensor

from saerl_lightning.objective.keeping.keep import Keep, KnownCompletions, first_of
from saerl_lightning.ranges import PositiveShare, require_in_range


class TopAdvantages(Keep):
    """Trains on a share of the step's completions, those with the largest |advantage|, over all prompts and ranks.

    Advantages are not computed anew. The number is rounded up. Of equal ones the first completions of all prompts are
    kept before the second ones. (Source: the authors' code of DataFlex-RL, arXiv 2609.06107; the choice among equals: ours.)

    Args:
        share: Share of the completions that are kept.

    Raises:
        InputError: if the share is not above 0 and at most 1.
    """

    def __init__(self, share: PositiveShare = 0.5) -> None:
        self.share = share
        require_in_range(self)

    @property
    def reads_advantages(self) -> bool:
        """True: advantages are all that counts."""
        return True

    def keep(self, answers: KnownCompletions) -> Bool[Tensor, "P G"]:
        """Marks the completions with the largest |advantage|."""
        # Columns first: the first completions of all prompts, then the second ones.
        size, valid = answers.advantages.abs().T.reshape(1, -1), answers.total.isfinite().T.reshape(1, -1)
        # Rounded, because advantages of groups that are alike differ in their last bits.
        order = size.double().round(decimals=6).argsort(dim=1, descending=True, stable=True)
        count = math.ceil(self.share * int(valid.sum()) - 1e-9)
        return first_of(order, valid, count).view_as(answers.total.T).T
