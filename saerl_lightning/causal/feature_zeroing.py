"""How far a probe's order hangs on few features: they are put to zero, and the prompts are ordered again. Pure.

The probe is told nothing (its weights stay) or is fitted anew without them. Only the first shows what this probe leans on;
only the second shows whether others could stand in. N prompts, n labelled ones, F features, j of them zeroed.
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
DRAWS = 10  # of random features


@dataclass(frozen=True)
class Zeroed:
    """What became of the order when j features were zeroed. Kendall's tau-b with the order before, 0 where none is left."""

    count: int  # j
    top: float  # tau, the weightiest features zeroed, same weights
    random: Float[np.ndarray, " draws"]  # tau, j equally active features zeroed, same weights
    weighted: float  # share of the random features that the probe gives a weight at all
    refitted: float  # tau of a probe fitted without the weightiest
    spearman: float  # of that probe with the label, out of fold
    random_spearman: float  # the same without the first draw of random features


def zero_out(
    features: Features,
    rows: Int[np.ndarray, " n"],
    labels: Float[np.ndarray, " n"],
    fit: LinearFit,
    fit_probe: FitProbe,
    counts: tuple[int, ...],
    seed: int,
) -> Iterator[Zeroed]:
    """Zeroes more and more of a probe's features; counts beyond those that it gives a weight are left out.

    Args:
        features: (N, F); all prompts are ordered.
        rows: the labelled ones.
        labels: theirs.
        fit: the probe, fitted to the labelled rows.
        fit_probe: fits another like it.
        counts: numbers of features to zero.
        seed: of the random features and of the folds.
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
