"""The order once columns are taken out of its probe's sight: a dose, to see whether the order's worth hangs on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from saerl_lightning.data.callback import Curriculum
from saerl_lightning.data.curriculum import EasyToHard
from saerl_lightning.data.feature_ablation import equally_active, top_columns
from saerl_lightning.data.labels import families, read_label, require_features, sample_labelled
from saerl_lightning.data.probe import CrossFit, LinearFit
from saerl_lightning.data.scores import kendall
from saerl_lightning.errors import InputError
from saerl_lightning.plan import SamplePlan
from saerl_lightning.ranges import CountFrom0, Seed, require_in_range
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features


class WithoutFeatures(Curriculum):
    """Orders easy to hard by the same probe, after its weightiest columns were set to 0 in every prompt.

    The probe is not fitted again: what these columns said is lost to the order. With none taken out this is `EasyToHard`.

    Source: the fifth causal test of docs/method.md; ours.

    Args:
        inner: the curriculum whose probe rates the prompts; its probe must be linear.
        count: columns taken out, by |weight| times the column's standard deviation; more than have a weight is all of them.
        random: take out as many random columns that are active in as many prompts, in their place: the control.
        seed: of the random columns.

    Raises:
        InputError: if `count` is below 0.
    """

    def __init__(self, inner: EasyToHard, count: CountFrom0, random: bool = False, seed: Seed = 0) -> None:
        self.inner = inner
        self.count = count
        self.random = random
        self.seed = seed
        self._metrics: dict[str, float] = {}
        self._blind = False
        require_in_range(self)

    @property
    def needs_features(self) -> bool:
        """The probe reads feature rows."""
        return True

    def check(self, prompts: Sequence[Prompt], planned: Int[np.ndarray, " K"]) -> None:
        """Refuses what the inner curriculum refuses."""
        self.inner.check(prompts, planned)

    def difficulty(
        self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None
    ) -> Float[np.ndarray, " N"]:
        """Rates every prompt by what the probe still sees.

        Raises:
            InputError: as `EasyToHard`, and if the probe is not linear.
        """
        reader, inner = type(self).__name__, self.inner
        labels, rows = read_label(reader, inner.label, prompts), require_features(reader, prompts, features)
        known = sample_labelled(labels, inner.labels, inner.seed)
        fits = inner.probe.cross_fit(rows, known, labels[known], families(prompts))
        others = tuple(each for each in fits.others if isinstance(each, LinearFit))
        if not isinstance(fits.whole, LinearFit):
            raise InputError(
                f"{reader}.inner.probe is {type(inner.probe).__name__}; write a linear one, ElasticNetProbe"
            )
        taken = top_columns(fits.whole.weights, rows, self.count)
        taken = equally_active(taken, rows, self.seed) if self.random else taken
        blind = CrossFit(fits.whole.without(taken), tuple(each.without(taken) for each in others), fits.fold)
        whole, left = fits.predict(rows), blind.predict(rows)
        self._blind = not blind.whole.nonzero
        self._metrics = {"without/columns": float(len(taken)), "without/tau": kendall(whole, left)}
        return -left if inner.descending else left

    def idle(self) -> str:
        """Says so too where no column with a weight is left: what differs between folds is chance."""
        return "its probe has no feature left to go by" if self._blind else super().idle()

    def metrics(self) -> dict[str, float]:
        """Adds how many columns were taken out, and Kendall's tau between the ratings with and without them."""
        return super().metrics() | self._metrics
