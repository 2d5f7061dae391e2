"""AnchoredBeta: a Beta distribution for every prompt whose prior is another policy's pass rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from saerl_lightning.online.beliefs.anchors import anchor_rates, require_anchor
from saerl_lightning.online.beliefs.counted import Counted
from saerl_lightning.ranges import Positive, Share, require_in_range
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features


class AnchoredBeta(Counted):
    """Begins with another policy's pass rate of each prompt, and adds the prompt's own right and wrong answers.

    An anchor's rate r counts as `answers` answers: Beta(answers * r + edge, answers * (1 - r) + edge). (Source: ThinkPrior,
    arXiv 2609.09075, by secondary sources, with these defaults. Ours: prompts without the label begin with the mean rate
    of the others, and `keep`, which is 1 in the source.)

    Args:
        label: Label from 0 (the other policy answers right always) to 100 (never).
        answers: Number of answers that the label counts as (kappa).
        edge: Number that is added to both parameters, since a rate of 0 or 1 leaves none (epsilon).
        keep: Share of a prompt's older counts that its next group keeps; 1 forgets nothing.

    Raises:
        InputError: if a number is out of range.
    """

    def __init__(
        self, label: str = "difficulty", answers: Positive = 4.0, edge: Positive = 1e-3, keep: Share = 1.0
    ) -> None:
        self.label = label
        self.answers = answers
        self.edge = edge
        self.keep = keep
        require_in_range(self)

    def check(self, prompts: Sequence[Prompt], planned: Int[np.ndarray, " K"]) -> None:
        """Refuses prompts of which most lack the label."""
        require_anchor(type(self).__name__, "label", self.label, prompts, planned)

    def begin(self, prompts: Sequence[Prompt], features: Features | None) -> None:
        """Sets every prompt to its anchor's rate."""
        rates = anchor_rates(type(self).__name__, "label", self.label, prompts)
        rates = np.where(np.isnan(rates), np.nanmean(rates), rates)
        self._begin_with(self.answers * np.stack([rates, 1 - rates], 1) + self.edge)
