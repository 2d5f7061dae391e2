"""How hard a prompt is, by what its features say. Orders without a model are in `curriculum_controls.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from saerl_lightning.data.callback import Curriculum
from saerl_lightning.data.features import equally_active, top_columns
from saerl_lightning.data.labels import families, lengths, read_label, require_features, require_label, sample_labelled
from saerl_lightning.data.ordering import permute_within
from saerl_lightning.data.probe_fits import CrossFit, LinearFit
from saerl_lightning.data.probes import ELASTIC_NET, Prediction, Probe
from saerl_lightning.data.scores import kendall
from saerl_lightning.errors import InputError
from saerl_lightning.plan import SamplePlan
from saerl_lightning.ranges import CountFrom0, CountFrom2, Seed, require_in_range
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
