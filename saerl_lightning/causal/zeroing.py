"""Causal test of orders: the order of prompts after a probe's top features are set to zero. No model is run.

The mathematics is in `feature_zeroing`. Letters: N prompts, n labelled ones, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Float, Int

from saerl_lightning.causal.feature_zeroing import DRAWS, Zeroed, zero_out
from saerl_lightning.causal.figures import lines
from saerl_lightning.causal.fitting import interval, several
from saerl_lightning.data.features import row_count
from saerl_lightning.data.labels import read_label, require_features, sample_labelled
from saerl_lightning.data.probe_fits import LinearFit, out_of_fold
from saerl_lightning.data.probes import ElasticNetProbe
from saerl_lightning.data.scores import Interval, agreement
from saerl_lightning.errors import InputError
from saerl_lightning.progress import Bar
from saerl_lightning.records import Prompt
from saerl_lightning.signals.source import Features, SignalSource
from saerl_lightning.study.report.section import Section

ZEROED = (1, 2, 4, 8, 16, 32, 64)
LABELLED = 1000  # largest number of labelled prompts that a probe is fitted on


@dataclass(frozen=True)
class Labelled:
    """Prompts with feature rows, some of them with a label that a probe learns."""

    what: str  # name of the labels in the section's text
    features: Features  # (N, F)
    rows: Int[np.ndarray, " n"]  # indices of the labelled prompts
    labels: Float[np.ndarray, " n"]

    @classmethod
    def of(cls, pool: Sequence[Prompt], label: str, signals: SignalSource, seed: int) -> Labelled:
        """Computes a pool's features and reads its labels, at most 1,000.

        Raises:
            InputError: if no prompt has the label.
        """
        values = read_label("study causal", label, pool)
        rows = sample_labelled(values, LABELLED, seed)
        features = require_features("study causal", pool, signals.features(pool))
        return cls(f"label '{label}' of {len(rows)} prompts", features, rows, values[rows])


def zeroing(labelled: Labelled, seed: int) -> Section:
    """Sets the top features of an elastic-net probe to zero and orders the prompts again.

    Args:
        labelled: Labelled prompts with features.
        seed: Seed of the folds and the random features.

    Raises:
        InputError: if the labels are constant, or no feature gets a weight.
    """
    probe = ElasticNetProbe(seed=seed)

    def fit(rows: Features, labels: Float[np.ndarray, " n"]) -> LinearFit:
        return cast("LinearFit", probe.fit(rows, labels))

    rows, labels = labelled.features[labelled.rows], labelled.labels
    whole = agreement(out_of_fold(fit, rows, labels, probe.folds, seed), labels, seed)["spearman"]
    fitted = fit(rows, labels)
    steps = zero_out(labelled.features, labelled.rows, labels, fitted, fit, ZEROED, seed)
    zeroed = list(Bar(steps, total=sum(count <= fitted.nonzero for count in ZEROED), desc="zeroing", unit="count"))
    if not zeroed:
        raise InputError(f"the probe of the {labelled.what} gives no feature a weight; give it more labels")
    text = (
        f"{_hangs(zeroed, whole)}\n\n"
        f"An elastic net was fitted on the {labelled.what} (Spearman out of fold {interval(whole)}; {fitted.nonzero} "
        f"features have a weight) and orders {row_count(labelled.features)}; then its weightiest features (|weight| times "
        f"sd) were zeroed, or as many random ones about as active ({DRAWS} draws, seed {seed})."
    )
    header = ["zeroed", "tau, top", "tau, random: mean [range]", "random ones with a weight", "tau, fitted anew"]
    header += ["Spearman with the label, fitted anew without top", "without random"]
    return Section("Features zeroed", text, header, [_zeroed_row(each) for each in zeroed], lines(zeroed))


def _hangs(zeroed: Sequence[Zeroed], whole: Interval) -> str:
    last = zeroed[-1]
    below = [each.count for each in zeroed if each.top < each.random.min()]
    verdict = f"below every random draw for {several(below)} zeroed" if below else "never below every random draw"
    return (
        f"With {last.count} zeroed tau is {last.top:.2f}, against {last.random.mean():.2f} for random ones; it is {verdict}. "
        f"Of the random ones {last.weighted:.0%} have a weight at all; the others can't move the order, so part of the "
        f"contrast is the probe's sparsity. Fitted anew without the top {last.count}, the probe reaches a Spearman of "
        f"{last.spearman:.2f}, without random ones {last.random_spearman:.2f}, with all {whole.value:.2f}: what is lost is "
        "what no other feature can stand in for."
    )


def _zeroed_row(each: Zeroed) -> list[str]:
    middle = f"{each.random.mean():.2f} [{each.random.min():.2f}, {each.random.max():.2f}]"
    fitted = [f"{value:.2f}" for value in (each.refitted, each.spearman, each.random_spearman)]
    return [str(each.count), f"{each.top:.2f}", middle, f"{each.weighted:.0%}", *fitted]
