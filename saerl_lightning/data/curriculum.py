"""Curricula: EasyToHard by a difficulty probe, and its controls (labels, length, shuffled, features removed)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from saerl_lightning.data.callback import Control, Curriculum, difficulty_by
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
    """Orders prompts by the difficulty that a probe predicts, lowest first. Equal predictions keep their order.

    Labelled prompts are ordered by predictions too, so that all prompts are on the same scale. Their predictions come
    from fits that have not seen the label of the prompt or of a duplicate.

    Source: an elastic-net probe on a small labelled subset and easy-to-hard inside clusters are SAERL's (arXiv
    2605.27354, as summarised by others); the number of labels is ours.

    Args:
        label: Name of the label that the probe learns, from the data or the labels file. Higher means harder.
        probe: Probe that predicts the label from feature rows.
        labels: Number of labelled prompts to learn from, drawn at random; null takes all.
        descending: Whether to serve the hardest prompts first. The plan then contains the negated prediction.
        seed: Seed of the random draw of labelled prompts.

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
        """True, because the probe reads feature rows."""
        return True

    def check(self, prompts: Sequence[Prompt], planned: Int[np.ndarray, " K"]) -> None:
        """Refuses labels that the probe can't learn from."""
        self.probe.check_label(type(self).__name__, self.label, prompts, self.labels, self.seed)

    def difficulty(
        self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None
    ) -> Float[np.ndarray, " N"]:
        """Predicts the label of every prompt.

        Raises:
            InputError: if the label is missing, constant or rarer than the folds, or a feature row is not finite.
        """
        self._prediction = self.probe.predict_label(
            type(self).__name__, self.label, prompts, features, self.labels, self.seed
        )
        return -self._prediction.values if self.descending else self._prediction.values

    def idle(self) -> str:
        """Returns why the order is arbitrary: the probe has no non-zero weight, or all ratings are equal."""
        return (self._prediction.idle if self._prediction else "") or super().idle()

    def doubt(self) -> str:
        """Returns why the probe's ratings may be no better than chance; "" if they are better."""
        return self._prediction.doubt if self._prediction else ""

    def metrics(self) -> dict[str, float]:
        """Adds the probe's scores."""
        return super().metrics() | (self._prediction.metrics() if self._prediction is not None else {})


class LabelOrder(Curriculum):
    """Orders prompts by a known label, lowest first: the data's own level, or a measured difficulty (oracle).

    Args:
        label: Name of the label, as in `Prompt.labels`. Every planned prompt must have it.
        descending: Whether to serve the highest first (hard to easy, or by pass rate). The plan then contains the
            negated label.
    """

    def __init__(self, label: str = "difficulty", descending: bool = False) -> None:
        self.label = label
        self.descending = descending
        require_in_range(self)

    def check(self, prompts: Sequence[Prompt], planned: Int[np.ndarray, " K"]) -> None:
        """Refuses planned prompts without the label."""
        require_label(type(self).__name__, self.label, prompts, planned)

    def difficulty(
        self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None
    ) -> Float[np.ndarray, " N"]:
        """Reads the label; NaN for unplanned prompts without it.

        Raises:
            InputError: if a planned prompt does not have the label.
        """
        values = require_label(type(self).__name__, self.label, prompts, plan.rows)
        return -values if self.descending else values


class LengthOrder(Curriculum):
    """Orders prompts by the number of characters of their text, shortest first."""

    def difficulty(
        self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None
    ) -> Float[np.ndarray, " N"]:
        """Counts the characters of each prompt's text."""
        return lengths(prompts)


class ShuffledOrder(Control[Curriculum], Curriculum):
    """Another curriculum's ratings, permuted at random within each cluster.

    Each cluster keeps its set of ratings and its number of batches, but ratings no longer belong to their prompts.

    Args:
        inner: Curriculum whose ratings are permuted.
        seed: Seed of the random permutation.
    """

    def __init__(self, inner: Curriculum, seed: Seed = 0) -> None:
        self.inner = inner
        self.seed = seed
        require_in_range(self)

    def difficulty(
        self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None
    ) -> Float[np.ndarray, " N"]:
        """Permutes the inner ratings of the planned prompts within each cluster."""
        return permute_within(difficulty_by(self.inner, plan, prompts, features), plan.cluster, plan.rows, self.seed)


class WithoutFeatures(Control[EasyToHard], Curriculum):
    """EasyToHard with some feature columns set to zero (dose-response ablation).

    The probe is not fitted again, so the order loses the information in these columns. With a count of 0 it equals
    `EasyToHard`.

    Source: the fifth causal test of docs/method.md; ours.

    Args:
        inner: Curriculum whose probe rates the prompts. The probe must be linear.
        count: Number of columns set to zero, by largest |weight| times standard deviation. A larger count than there
            are non-zero weights removes all.
        random: Whether to remove random columns of similar activity instead (control).
        seed: Seed of the random columns.

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

    def difficulty(
        self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None
    ) -> Float[np.ndarray, " N"]:
        """Rates every prompt by the probe without the removed columns.

        Raises:
            InputError: as for `EasyToHard`, and if the probe is not linear.
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
        removed = top_columns(fits.whole.weights, rows, self.count)
        removed = equally_active(removed, rows, self.seed) if self.random else removed
        blind = CrossFit(fits.whole.without(removed), tuple(each.without(removed) for each in others), fits.fold)
        whole, remaining = fits.predict(rows), blind.predict(rows)
        self._blind = not blind.whole.nonzero
        self._metrics = {"without/columns": float(len(removed)), "without/tau": kendall(whole, remaining)}
        return -remaining if inner.descending else remaining

    def idle(self) -> str:
        """Returns why the order is arbitrary: no column with a non-zero weight is left, or all ratings are equal."""
        return "its probe has no feature left to go by" if self._blind else super().idle()

    def metrics(self) -> dict[str, float]:
        """Adds the number of removed columns, and Kendall's tau between the ratings with and without them."""
        return super().metrics() | self._metrics
