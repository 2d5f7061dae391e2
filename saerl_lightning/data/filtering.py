"""Filters: QualityFilter by a quality probe, and its controls (known labels, random, length, matched on difficulty).

The probe learns from all prompts with the label, also from those that are never served, such as corrupted copies. The
share to drop is computed among the planned prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from saerl_lightning.data.callback import Control, Filtering, kept_by, quality_by
from saerl_lightning.data.labels import bin_by, lengths, require_label
from saerl_lightning.data.probes import RIDGE, Prediction, Probe
from saerl_lightning.plan import SamplePlan
from saerl_lightning.ranges import Count, CountFrom2, Finite, Seed, ShareBelow1, require_in_range
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features


class QualityFilter(Filtering):
    """Drops the prompts of lowest predicted quality.

    Each prompt is rated by a fit that has not seen its own label, or that of a copy or duplicate.

    Source: a linear probe for quality is SAERL's (arXiv 2605.27354, as summarised by others); ridge and the share are ours.

    Args:
        label: Name of the label that the probe learns, from the data or the reference prompts. Higher is better.
        probe: Probe that predicts the label from feature rows.
        drop: Share of the planned prompts to drop, in [0, 1): those below this quantile of the predictions. Predictions
            equal to the quantile are kept.
        threshold: Prediction below which prompts are dropped, instead of a share; null uses `drop`.
        labels: Number of labelled prompts to learn from, drawn at random; null takes all.
        seed: Seed of the random draw of labelled prompts.

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
        """True, because the probe reads feature rows."""
        return True

    def check(self, prompts: Sequence[Prompt], planned: Int[np.ndarray, " K"]) -> None:
        """Refuses labels that the probe can't learn from."""
        self.probe.check_label(type(self).__name__, self.label, prompts, self.labels, self.seed)

    def quality(
        self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None
    ) -> Float[np.ndarray, " N"]:
        """Predicts the label of every prompt.

        Raises:
            InputError: if the label is missing, constant or rarer than the folds, or a feature row is not finite.
        """
        self._prediction = self.probe.predict_label(
            type(self).__name__, self.label, prompts, features, self.labels, self.seed
        )
        return self._prediction.values

    def keep(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> Bool[np.ndarray, " N"]:
        """Keeps predictions at or above the threshold."""
        if self.threshold is None:
            self._cut = float(np.quantile(plan.quality[plan.rows], self.drop))
        else:
            self._cut = self.threshold
        return plan.quality >= self._cut

    def reason(self) -> str:
        """Describes the label and the threshold. The prompt's own prediction is in the ledger's `quality`."""
        rule = f"the {self.drop:g} quantile" if self.threshold is None else "the threshold"
        return f"predicted {self.label} below {self._cut:.4g}, {rule}"

    def idle(self) -> str:
        """Returns why the choice is arbitrary or empty: the probe has no non-zero weight, or no prompt is dropped."""
        return (self._prediction.idle if self._prediction else "") or super().idle()

    def doubt(self) -> str:
        """Returns why the probe's ratings may be no better than chance; "" if they are better."""
        return self._prediction.doubt if self._prediction else ""

    def metrics(self) -> dict[str, float]:
        """Adds the threshold and the probe's scores."""
        if self._prediction is None:
            return super().metrics()
        return {**super().metrics(), "threshold": self._cut, **self._prediction.metrics()}


class RandomFilter(Filtering):
    """Drops a share of the planned prompts at random.

    Args:
        fraction: Share to drop, in [0, 1), rounded to whole prompts.
        seed: Seed of the random draw.

    Raises:
        InputError: if `fraction` is out of range.
    """

    def __init__(self, fraction: ShareBelow1 = 0.1, seed: Seed = 0) -> None:
        self.fraction = fraction
        self.seed = seed
        require_in_range(self)

    def keep(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> Bool[np.ndarray, " N"]:
        """Keeps all prompts but the drawn ones."""
        drawn = round(self.fraction * len(plan.rows))
        kept = np.ones(len(prompts), dtype=bool)
        kept[np.random.default_rng(self.seed).permutation(plan.rows)[:drawn]] = False
        return kept

    def reason(self) -> str:
        """Describes the share and the seed."""
        return f"random {self.fraction:g} of the prompts (seed {self.seed})"


class LabelFilter(Filtering):
    """Drops the planned prompts of the lowest known label: the filter of an oracle, where the label is the truth.

    Args:
        label: Name of the label, from the data or the labels file; higher is better. Every planned prompt must have it.
        fraction: Share to drop, in [0, 1), rounded to whole prompts. Of equal labels, those served later are dropped
            first.

    Raises:
        InputError: if `fraction` is out of range.
    """

    def __init__(self, label: str = "quality", fraction: ShareBelow1 = 0.1) -> None:
        self.label = label
        self.fraction = fraction
        require_in_range(self)

    def check(self, prompts: Sequence[Prompt], planned: Int[np.ndarray, " K"]) -> None:
        """Refuses planned prompts without the label."""
        require_label(type(self).__name__, self.label, prompts, planned)

    def quality(
        self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None
    ) -> Float[np.ndarray, " N"]:
        """Reads the label; NaN for unplanned prompts without it.

        Raises:
            InputError: if a planned prompt does not have the label.
        """
        return require_label(type(self).__name__, self.label, prompts, plan.rows)

    def keep(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> Bool[np.ndarray, " N"]:
        """Keeps all prompts but those of the lowest label."""
        return _all_but_lowest(plan, self.fraction)

    def reason(self) -> str:
        """Describes the label and the share."""
        return f"{self.label} among the lowest {self.fraction:g} of the prompts"


class LengthFilter(Filtering):
    """Drops the longest planned prompts, by number of characters.

    Args:
        fraction: Share to drop, in [0, 1), rounded to whole prompts. Of equally long prompts, those served later are
            dropped first.

    Raises:
        InputError: if `fraction` is out of range.
    """

    def __init__(self, fraction: ShareBelow1 = 0.1) -> None:
        self.fraction = fraction
        require_in_range(self)

    def quality(
        self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None
    ) -> Float[np.ndarray, " N"]:
        """Rates a prompt by its negated length."""
        return -lengths(prompts)

    def keep(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> Bool[np.ndarray, " N"]:
        """Keeps all prompts but the longest."""
        return _all_but_lowest(plan, self.fraction)

    def reason(self) -> str:
        """Describes the share."""
        return f"one of the longest {self.fraction:g} of the prompts"


def _all_but_lowest(plan: SamplePlan, fraction: float) -> Bool[np.ndarray, " N"]:
    """Keeps all prompts but the given share of the planned ones, those of the lowest quality."""
    best_first = plan.rows[np.argsort(-plan.quality[plan.rows], kind="stable")]
    kept = np.ones(len(plan.quality), dtype=bool)
    kept[best_first[len(plan.rows) - round(fraction * len(plan.rows)) :]] = False
    return kept


class MatchedFilter(Control[Filtering], Filtering):
    """Drops random prompts, as many from each bin of a label as another filter would drop.

    An effect that remains comes from the number and the difficulty of the dropped prompts, not from their choice.

    Args:
        inner: Filter to match. Its ratings are shown in the ledger.
        label: Name of the label, from the data or the labels file. Every planned prompt must have it.
        bins: Number of quantile bins of the label.
        seed: Seed of the random draw.

    Raises:
        InputError: if `bins` is below 1.
    """

    def __init__(self, inner: Filtering, label: str = "difficulty", bins: Count = 10, seed: Seed = 0) -> None:
        self.inner = inner
        self.label = label
        self.bins = bins
        self.seed = seed
        require_in_range(self)

    def check(self, prompts: Sequence[Prompt], planned: Int[np.ndarray, " K"]) -> None:
        """Refuses what the inner filter refuses, and planned prompts without the label."""
        super().check(prompts, planned)
        require_label(type(self).__name__, self.label, prompts, planned)

    def quality(
        self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None
    ) -> Float[np.ndarray, " N"]:
        """Returns the inner filter's ratings."""
        return quality_by(self.inner, plan, prompts, features)

    def keep(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> Bool[np.ndarray, " N"]:
        """Drops as many random prompts from each bin as the inner filter drops.

        Raises:
            InputError: if a planned prompt does not have the label.
        """
        bins = bin_by(require_label(type(self).__name__, self.label, prompts, plan.rows), plan.rows, self.bins)
        refused = ~kept_by(self.inner, plan, prompts, features)[plan.rows]
        order = np.random.default_rng(self.seed).permutation(plan.rows)
        wanted = np.bincount(bins[plan.rows][refused], minlength=self.bins + 1)
        kept = np.ones(len(prompts), dtype=bool)
        for number, count in enumerate(wanted):
            kept[order[bins[order] == number][:count]] = False
        return kept

    def reason(self) -> str:
        """Describes the label and the matched filter."""
        return f"random, as many in each bin of {self.label} as {type(self.inner).__name__} drops (seed {self.seed})"
