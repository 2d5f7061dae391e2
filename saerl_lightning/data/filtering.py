"""Which prompts to drop: those of low predicted quality.

The probe learns from prompts that have the label, planned or not (corrupted copies that are never served, for one); the cut
is made among the planned ones. Its nulls are in `filtering_controls.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from saerl_lightning.data.callback import Filtering
from saerl_lightning.data.labels import bin_by, lengths, require_label
from saerl_lightning.data.probes import RIDGE, Prediction, Probe
from saerl_lightning.plan import SamplePlan
from saerl_lightning.ranges import Count, CountFrom2, Finite, Seed, ShareBelow1, require_in_range
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features


class QualityFilter(Filtering):
    """Drops the prompts of lowest predicted quality.

    A prompt is rated by a fit that has not seen its own label, nor that of its copies and duplicates.

    Source: a linear probe for quality is SAERL's (arXiv 2605.27354, as summarised by others); ridge and the share are ours.

    Args:
        label: what the probe learns, higher is better; a label of the data or of the reference prompts.
        probe: what predicts it from feature rows.
        drop: share of the planned prompts that goes, in [0, 1): those below this quantile of the predictions. Equal
            predictions at the cut stay.
        threshold: drop everything predicted below this instead; null goes by the share.
        labels: labelled prompts to learn from, drawn at random; null takes all.
        seed: of that draw.

    Raises:
        InputError: if an argument is out of range.
    """

    def __init__(
        self,
        label: str = "quality",
        probe: Probe = RIDGE,
        drop: ShareBelow1 = 0.1,
        threshold: Finite | None = None,
        labels: CountFrom2 | None = None,
        seed: Seed = 0,
    ) -> None:
        self.label = label
        self.probe = probe
        self.drop = drop
        self.threshold = threshold
        self.labels = labels
        self.seed = seed
        self._prediction: Prediction | None = None
        self._cut = float("nan")
        require_in_range(self)

    @property
    def needs_features(self) -> bool:
        """The probe reads feature rows."""
        return True

    def check(self, prompts: Sequence[Prompt], planned: Int[np.ndarray, " K"]) -> None:
        """Refuses labels that the probe can't learn from."""
        self.probe.check_label(type(self).__name__, self.label, prompts, self.labels, self.seed)

    def quality(
        self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None
    ) -> Float[np.ndarray, " N"]:
        """Predicts the label of every prompt.

        Raises:
            InputError: if the label is missing, constant or rarer than there are folds, or a feature row is not finite.
        """
        self._prediction = self.probe.predict_label(
            type(self).__name__, self.label, prompts, features, self.labels, self.seed
        )
        return self._prediction.values

    def keep(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> Bool[np.ndarray, " N"]:
        """Keeps predictions at or above the cut."""
        if self.threshold is None:
            self._cut = float(np.quantile(plan.quality[plan.rows], self.drop))
        else:
            self._cut = self.threshold
        return plan.quality >= self._cut

    def reason(self) -> str:
        """Names the score and the cut; the prompt's own prediction is in the ledger's `quality`."""
        rule = f"the {self.drop:g} quantile" if self.threshold is None else "the threshold"
        return f"predicted {self.label} below {self._cut:.4g}, {rule}"

    def idle(self) -> str:
        """Says so too where the probe has no weight: its ratings are then chance."""
        return (self._prediction.idle if self._prediction else "") or super().idle()

    def metrics(self) -> dict[str, float]:
        """Adds the cut and the probe's scores."""
        if self._prediction is None:
            return super().metrics()
        return {**super().metrics(), "threshold": self._cut, **self._prediction.metrics()}


class RandomFilter(Filtering):
    """Drops a share of the planned prompts at random.

    Args:
        fraction: share to drop, in [0, 1); the number is rounded to the nearest whole.
        seed: of the draw.

    Raises:
        InputError: if `fraction` is out of range.
    """

    def __init__(self, fraction: ShareBelow1 = 0.1, seed: Seed = 0) -> None:
        self.fraction = fraction
        self.seed = seed
        require_in_range(self)

    def keep(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> Bool[np.ndarray, " N"]:
        """Keeps all but the drawn rows."""
        drawn = round(self.fraction * len(plan.rows))
        kept = np.ones(len(prompts), dtype=bool)
        kept[np.random.default_rng(self.seed).permutation(plan.rows)[:drawn]] = False
        return kept

    def reason(self) -> str:
        """Names the draw."""
        return f"random {self.fraction:g} of the prompts (seed {self.seed})"


class LengthFilter(Filtering):
    """Drops the longest planned prompts, by characters of the user's words.

    Args:
        fraction: share to drop, in [0, 1); the number is rounded to the nearest whole. Of equally long prompts those that
            are served later go first.

    Raises:
        InputError: if `fraction` is out of range.
    """

    def __init__(self, fraction: ShareBelow1 = 0.1) -> None:
        self.fraction = fraction
        require_in_range(self)

    def quality(
        self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None
    ) -> Float[np.ndarray, " N"]:
        """Rates a prompt by its length, negated."""
        return -lengths(prompts)

    def keep(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> Bool[np.ndarray, " N"]:
        """Keeps all but the longest."""
        drawn = round(self.fraction * len(plan.rows))
        shortest_first = plan.rows[np.argsort(-plan.quality[plan.rows], kind="stable")]
        kept = np.ones(len(prompts), dtype=bool)
        kept[shortest_first[len(plan.rows) - drawn :]] = False
        return kept

    def reason(self) -> str:
        """Names the share."""
        return f"one of the longest {self.fraction:g} of the prompts"


class MatchedFilter(Filtering):
    """Drops at random, from every bin of a label, as many prompts as another filter would drop from it.

    What is left of the other filter's effect then comes from its count and from the difficulties it leaves behind, not from
    the prompts it chose.

    Args:
        inner: the filter to match; its ratings stay in the ledger.
        label: a label of the data or of the labels file, which every planned prompt must have.
        bins: quantile bins of the label.
        seed: of the draw.

    Raises:
        InputError: if `bins` is below 1.
    """

    def __init__(self, inner: Filtering, label: str = "difficulty", bins: Count = 10, seed: Seed = 0) -> None:
        self.inner = inner
        self.label = label
        self.bins = bins
        self.seed = seed
        require_in_range(self)

    @property
    def needs_features(self) -> bool:
        """As the inner filter."""
        return self.inner.needs_features

    def check(self, prompts: Sequence[Prompt], planned: Int[np.ndarray, " K"]) -> None:
        """Refuses what the inner filter refuses, and planned prompts without the label."""
        self.inner.check(prompts, planned)
        require_label(type(self).__name__, self.label, prompts, planned)

    def quality(
        self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None
    ) -> Float[np.ndarray, " N"]:
        """The inner filter's ratings."""
        return self.inner.quality(plan, prompts, features)

    def keep(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> Bool[np.ndarray, " N"]:
        """Drops as many of each bin as the inner filter does, others.

        Raises:
            InputError: if a planned prompt lacks the label.
        """
        bins = bin_by(require_label(type(self).__name__, self.label, prompts, plan.rows), plan.rows, self.bins)
        refused = ~self.inner.keep(plan, prompts, features)[plan.rows]
        order = np.random.default_rng(self.seed).permutation(plan.rows)
        wanted = np.bincount(bins[plan.rows][refused], minlength=self.bins + 1)
        kept = np.ones(len(prompts), dtype=bool)
        for number, count in enumerate(wanted):
            kept[order[bins[order] == number][:count]] = False
        return kept

    def idle(self) -> str:
        """Says so too where there is nothing to match, because the inner filter's probe has no weight."""
        return self.inner.idle() or super().idle()

    def reason(self) -> str:
        """Names what was matched."""
        return f"random, as many in each bin of {self.label} as {type(self.inner).__name__} drops (seed {self.seed})"
