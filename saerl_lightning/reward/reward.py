"""The seam of rewards: a number for every completion."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from saerl_lightning.records import Prompt, Rollouts
from saerl_lightning.reward.answer import last_answer


class Reward(ABC):
    """Scores completions. A subclass sets `weight` in its constructor.

    Attributes:
        weight: factor of this reward in the sum that is maximised.
    """

    weight: float = 1.0

    @property
    def name(self) -> str:
        """Name in the logs: the class name without 'Reward', in snake case."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__.removesuffix("Reward")).lower()

    def vote(self, text: str) -> str:
        """The answer a completion votes for in maj@k; "" abstains. By default the boxed answer or the last number."""
        return last_answer(text)

    @property
    def last_failure(self) -> str:
        """Why the last grade that is NaN could not be given, as in "raised ValueError(...)"; "" where it is not known."""
        return ""

    @abstractmethod
    def __call__(self, prompts: Sequence[Prompt], rollouts: Rollouts) -> Float[Tensor, "P G"]:
        """Scores every completion; NaN where the grader itself failed (an overrun, a crash), which is not 'wrong'."""

    def close(self) -> None:
        """Frees processes the reward holds; nothing by default."""
