"""GFPO: the shortest completions of each group, or those with the highest reward a token."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Bool
from torch import Tensor

from saerl_lightning.errors import InputError
from saerl_lightning.objective.keeping.keep import Keep, KnownCompletions, first_of
from saerl_lightning.ranges import Count, require_in_range


class GFPO(Keep):
    """Trains on k of each group's completions: the shortest, or those with the highest reward a token.

    Advantages are computed among them. It is made for large groups (16 to 24), so that a policy learns to be brief.
    (Source: arXiv 2508.09726; default as in the authors' code of DataFlex-RL, arXiv 2609.06107. Of equal rewards a token
    the shorter: ours; so is the division of losses by the completions that are kept.)

    Args:
        count: Number of completions to keep of each group (k).
        by: What is kept: `length`, the shortest, or `efficiency`, the highest reward divided by tokens.

    Raises:
        InputError: if the count is below 1.
    """

    def __init__(self, count: Count = 8, by: Literal["length", "efficiency"] = "length") -> None:
        self.count = count
        self.by = by
        require_in_range(self)

    def check(self, group_size: int) -> None:
        """Refuses a count that keeps all completions."""
        if self.count >= group_size:
            raise InputError(
                f"GFPO keeps {self.count} of {group_size} completions (model.sampling.group_size); write fewer, or "
                "larger groups"
            )

    def keep(self, answers: KnownCompletions) -> Bool[Tensor, "P G"]:
        """Marks the best completions of each group."""
        valid = answers.total.isfinite()
        order = answers.lengths.argsort(dim=1, stable=True)
        if self.by == "efficiency":
            worth = (answers.total.nan_to_num(0.0) / answers.lengths.clamp(min=1)).gather(1, order)
            order = order.gather(1, worth.argsort(dim=1, descending=True, stable=True))
        return first_of(order, valid, self.count)
