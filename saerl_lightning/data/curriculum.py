"""How hard a prompt is, by what its features say. Orders without a model are in `curriculum_controls.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from saerl_lightning.data.callback import Curriculum
from saerl_lightning.data.probes import ELASTIC_NET, Prediction, Probe
from saerl_lightning.plan import SamplePlan
from saerl_lightning.ranges import CountFrom2, Seed, require_in_range
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features


class EasyToHard(Curriculum):
    """Orders by difficulty as a probe predicts it, lowest first; equal predictions keep the present order.

    The labelled prompts are ordered by predictions too, so that all prompts are on one scale: by those of fits that have not
    seen the prompt's own label, nor that of a duplicate.

    Source: an ElasticNet probe on a small labelled subset, easy-to-hard inside clusters, is SAERL's (arXiv 2605.27354, as
    summarised by others); the number of labels is ours.

    Args:
        label: what the probe learns: a label of the data or of the labels file, higher is harder.
        probe: what predicts it from feature rows.
        labels: labelled prompts to learn from, drawn at random; null takes all.
        descending: serve the hardest first; the plan then holds the negated prediction.
        seed: of that draw.

    Raises:
        InputError: if `labels` is below 2.
    """

    def __init__(
        self,
        label: str = "difficulty",
        probe: Probe = ELASTIC_NET,
        labels: CountFrom2 | None = 1000,
        descending: bool = False,
        seed: Seed = 0,
    ) -> None:
        self.label = label
        self.probe = probe
        self.labels = labels
        self.descending = descending
        self.seed = seed
        self._prediction: Prediction | None = None
        require_in_range(self)

    @property
    def needs_features(self) -> bool:
        """The probe reads feature rows."""
        return True

    def check(self, prompts: Sequence[Prompt], planned: Int[np.ndarray, " K"]) -> None:
        """Refuses labels that the probe can't learn from."""
        self.probe.check_label(type(self).__name__, self.label, prompts, self.labels, self.seed)

    def difficulty(
        self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None
    ) -> Float[np.ndarray, " N"]:
        """Predicts the label of every prompt.

        Raises:
            InputError: if the label is missing, constant or rarer than there are folds, or a feature row is not finite.
        """
        self._prediction = self.probe.predict_label(
            type(self).__name__, self.label, prompts, features, self.labels, self.seed
        )
        return -self._prediction.values if self.descending else self._prediction.values

    def idle(self) -> str:
        """Says so too where the probe has no weight: its ratings are then chance."""
        return (self._prediction.idle if self._prediction else "") or super().idle()

    def metrics(self) -> dict[str, float]:
        """Adds the probe's scores."""
        return super().metrics() | (self._prediction.metrics() if self._prediction is not None else {})
