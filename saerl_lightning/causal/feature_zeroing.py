"""Sets a probe's top features to zero and orders the prompts again, to see how much the order depends on them. Pure.

The probe either keeps its weights, or is fitted again without these features. Fixed weights show how much this probe
depends on the features; a new fit shows whether other features can replace them. Letters: N prompts, n labelled ones, F
features, j zeroed features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from saerl_lightning.data.features import equally_active, top_columns, without
from saerl_lightning.data.probe_fits import LinearFit, out_of_fold
from saerl_lightning.data.scores import kendall, spearman

Features = np.ndarray | csr_array
FitProbe = Callable[[Features, Float[np.ndarray, " n"]], LinearFit]

FOLDS = 5
DRAWS = 10  # number of random sets of features


@dataclass(frozen=True)
class Zeroed:
    """Order after j features were zeroed: Kendall's tau-b with the order before, 0 if all ratings are equal."""

    count: int  # j
    top: float  # tau with the top features zeroed, same weights
    random: Float[np.ndarray, " draws"]  # tau with j equally active random features zeroed, same weights
    weighted: float  # share of the random features whose weight is not zero
    refitted: float  # tau of a probe fitted without the top features
    spearman: float  # out-of-fold correlation of the refitted probe with the label
    random_spearman: float  # out-of-fold correlation of a probe fitted without the first set of random features


def zero_out(
    features: Features,
    rows: Int[np.ndarray, " n"],
    labels: Float[np.ndarray, " n"],
    fit: LinearFit,
    fit_probe: FitProbe,
    counts: tuple[int, ...],
    seed: int,
) -> Iterator[Zeroed]:
    """Zeroes increasing numbers of a probe's features; numbers above its nonzero weights are left out.

    Args:
        features: Feature rows of all prompts, (N, F).
        rows: Indices of the labelled prompts.
        labels: Labels of these prompts.
        fit: Probe fitted to the labelled rows.
        fit_probe: Function that fits another probe of this type.
        counts: Numbers of features to zero.
        seed: Seed of the random features and the folds.
    """
    before = fit.predict(features)
    for count in counts:
        columns = top_columns(fit.weights, features, count)
        if count > len(columns):
            return
        drawn = [equally_active(columns, features, seed + draw) for draw in range(DRAWS)]
        left, left_at_random = without(features, columns), without(features, drawn[0])
        yield Zeroed(
            count,
            kendall(before, fit.predict(left)),
            np.array([kendall(before, fit.predict(without(features, each))) for each in drawn]),
            float(np.mean(fit.weights[np.concatenate(drawn)] != 0)),
            kendall(before, fit_probe(left[rows], labels).predict(left)),
            spearman(out_of_fold(fit_probe, left[rows], labels, FOLDS, seed), labels),
            spearman(out_of_fold(fit_probe, left_at_random[rows], labels, FOLDS, seed), labels),
        )
