"""Orders without a probe: a label of the data, length alone (the rival that every signal must beat), and a shuffled order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from saerl_lightning.data.callback import Curriculum
from saerl_lightning.data.labels import lengths, require_label
from saerl_lightning.data.permutation import permute_within
from saerl_lightning.plan import SamplePlan
from saerl_lightning.ranges import Seed, require_in_range
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features


class LabelOrder(Curriculum):
    """Orders by a number that the data brings, lowest first: its own level, or a measured difficulty (the oracle).

    Args:
        label: name of the label, as in `Prompt.labels`; every planned prompt must have it.
        descending: serve the highest first (hard-to-easy, or by a pass rate); the plan then holds the negated label.
    """

    def __init__(self, label: str = "difficulty", descending: bool = False) -> None:
        self.label = label
        self.descending = descending

    def check(self, prompts: Sequence[Prompt], planned: Int[np.ndarray, " K"]) -> None:
        """Refuses planned prompts without the label."""
        require_label(type(self).__name__, self.label, prompts, planned)

    def difficulty(
        self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None
    ) -> Float[np.ndarray, " N"]:
        """Reads the label; NaN where an unplanned prompt lacks it.

        Raises:
            InputError: if a planned prompt lacks the label.
        """
        values = require_label(type(self).__name__, self.label, prompts, plan.rows)
        return -values if self.descending else values


class LengthOrder(Curriculum):
    """Orders by the number of characters of the user's words, shortest first."""

    def difficulty(
        self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None
    ) -> Float[np.ndarray, " N"]:
        """Counts characters."""
        return lengths(prompts)


class ShuffledOrder(Curriculum):
    """Another curriculum's ratings, permuted at random within each cluster.

    Each cluster keeps its ratings and the streams their shape; the link from a prompt to its rating is cut.

    Args:
        inner: the curriculum whose ratings are permuted.
        seed: of the permutation.
    """

    def __init__(self, inner: Curriculum, seed: Seed = 0) -> None:
        self.inner = inner
        self.seed = seed
        require_in_range(self)

    @property
    def needs_features(self) -> bool:
        """As the inner curriculum."""
        return self.inner.needs_features

    def check(self, prompts: Sequence[Prompt], planned: Int[np.ndarray, " K"]) -> None:
        """Refuses what the inner curriculum refuses."""
        self.inner.check(prompts, planned)

    def idle(self) -> str:
        """Says so too where the inner curriculum's probe has no weight."""
        return self.inner.idle() or super().idle()

    def difficulty(
        self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None
    ) -> Float[np.ndarray, " N"]:
        """Permutes the inner ratings of the planned prompts of each cluster."""
        return permute_within(self.inner.difficulty(plan, prompts, features), plan.cluster, plan.rows, self.seed)
