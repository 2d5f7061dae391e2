"""Keep: the interface of decisions which of a step's graded completions are trained on.

The others leave the step before its forward passes: losses are divided by the completions that are kept. P prompts, G
completions a prompt.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class KnownCompletions:
    """What is known of a step's completions; NaN in `total` and `right` where one would not be trained on anyway."""

    total: Float[Tensor, "P G"]  # weighted sums of all rewards
    right: Float[Tensor, "P G"]  # the first reward, which says which answers are right
    lengths: Float[Tensor, "P G"]  # tokens that the policy wrote
    advantages: Float[Tensor, "P G"]  # 0 unless `reads_advantages`
    batches: int = 0  # batches that the run has trained on before this one


class Keep(ABC):
    """Decides which of a step's completions are trained on, after they were graded. The constructor only stores."""

    @property
    def reads_advantages(self) -> bool:
        """Whether completions are chosen by their advantages, from those of all ranks.

        If not, each rank chooses among its own prompts, and advantages are computed among the completions that are kept.
        """
        return False

    def check(self, group_size: int) -> None:
        """Refuses a group size that leaves nothing to choose. By default refuses nothing.

        Raises:
            InputError: with what to write instead.
        """

    @abstractmethod
    def keep(self, answers: KnownCompletions) -> Bool[Tensor, "P G"]:
        """Marks the completions to train on. Those with a NaN reward are not, whatever is marked."""


def first_of(order: Tensor, valid: Bool[Tensor, "P G"], count: int) -> Bool[Tensor, "P G"]:
    """Marks the first `count` valid completions of each group; all of them, where there are no more.

    Args:
        order: Positions of each group's completions, the best first, (P, G).
        valid: Completions that can be kept.
        count: Number of completions to keep of each group.
    """
    placed = valid.gather(1, order)
    chosen = placed & (placed.cumsum(1) <= count)
    return chosen.new_zeros(chosen.shape).scatter(1, order, chosen)
