"""Difficulty without a model: a label of the data, and length alone, the rival that every signal must beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from saerl_lightning.data.callback import Curriculum
from saerl_lightning.errors import InputError
from saerl_lightning.plan import SamplePlan
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features


class LabelOrder(Curriculum):
    """Orders by a number that the data brings, lowest first.

    Args:
        label: name of the label, as in `Prompt.labels`.
        descending: serve the highest first (hard-to-easy); the plan then holds the negated label.
    """

    def __init__(self, label: str = "difficulty", descending: bool = False) -> None:
        self.label = label
        self.descending = descending

    def difficulty(
        self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None
    ) -> Float[np.ndarray, " N"]:
        """Reads the label; NaN where a prompt lacks it.

        Raises:
            InputError: if no prompt has the label.
        """
        values = np.array([prompt.labels.get(self.label, np.nan) for prompt in prompts], dtype=np.float64)
        if np.isnan(values).all():
            present = ", ".join(sorted({name for prompt in prompts for name in prompt.labels})) or "none"
            raise InputError(f"LabelOrder.label is {self.label!r}, but no prompt has it; labels present: {present}")
        return -values if self.descending else values


class LengthOrder(Curriculum):
    """Orders by the number of characters of the user's words, shortest first."""

    def difficulty(
        self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None
    ) -> Float[np.ndarray, " N"]:
        """Counts characters."""
        return np.array([len(prompt.text) for prompt in prompts], dtype=np.float64)
