"""Spherical k-means: groups rows by direction. Pure functions over matrices; sparse rows stay sparse.

scikit-learn's (mini-batch) k-means of the unit rows finds where to start; rounds of assigning by cosine and averaging bring
it to a fixed point of the spherical objective. M rows, F columns, D reduced columns, K clusters.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from saerl_lightning.data.features import blocks, column_count, row_count, unit_rows

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features

ROUNDS = 20  # of assigning and averaging, at most
SKETCHED = 50_000  # rows that the reduced columns are found on, at most


def directions(features: Features, rows: Int[np.ndarray, " M"], components: int, seed: int) -> Float[np.ndarray, "F D"]:
    """Finds the directions that the unit rows vary most along: right singular vectors, by randomised SVD.

    Args:
        features: (N, F).
        rows: which to look at; beyond 50,000 a random sample of as many.
        components: how many (D).
        seed: of the sample and of the SVD.
    """
    from sklearn.utils.extmath import randomized_svd

    seen = rows if len(rows) <= SKETCHED else np.random.default_rng(seed).choice(rows, SKETCHED, replace=False)
    settings: Any = {"n_iter": 2, "random_state": seed}
    return randomized_svd(unit_rows(features[seen]), components, **settings)[2].T.astype(np.float32)


def project(features: Features, onto: Float[np.ndarray, "F D"]) -> Float[np.ndarray, "N D"]:
    """Unit rows of the reduced features, in float32, block by block; a row of zeros stays one."""
    reduced = np.empty((row_count(features), onto.shape[1]), dtype=np.float32)
    for block in blocks(len(reduced)):
        reduced[block] = unit_rows(unit_rows(features[block]) @ onto)
    return reduced


def reduced_units(features: Features, rows: Int[np.ndarray, " M"], components: int | None, seed: int) -> Features:
    """Unit rows, reduced to `components` columns if there are more than that, else as they are."""
    if components is None or components >= min(len(rows), row_count(features), column_count(features)):
        return unit_rows(features)
    return project(features, directions(features, rows, components, seed))


def spherical_kmeans(units: Features, clusters: int, seed: int, minibatch: bool) -> Float[np.ndarray, "K D"]:
    """Finds centres of unit length that lie close, by cosine, to the rows.

    Args:
        units: (M, D), unit rows.
        clusters: how many (K), M at most.
        seed: of the starting points.
        minibatch: start from mini-batch k-means, for many rows.

    Returns:
        The centres; one without members stays where it started.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    chosen: Any = MiniBatchKMeans if minibatch else KMeans
    settings = {"batch_size": 4096, "n_init": 3, "max_iter": 20} if minibatch else {"n_init": 4}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than clusters: some stay empty
        start = chosen(clusters, random_state=seed, **settings).fit(units)
    centres = unit_rows(start.cluster_centers_)
    labels = nearest(units, centres)
    for _ in range(ROUNDS):
        centres = _averages(units, labels, centres)
        moved = nearest(units, centres)
        if np.array_equal(moved, labels):
            break
        labels = moved
    return centres


def nearest(units: Features, centres: Float[np.ndarray, "K D"]) -> Int[np.ndarray, " M"]:
    """The centre of largest cosine for each row, block by block; the first of equal ones."""
    count = row_count(units)
    labels = np.empty(count, dtype=np.int64)
    for block in blocks(count):
        labels[block] = (units[block] @ centres.T).argmax(axis=1)
    return labels


def largest_first(labels: Int[np.ndarray, " N"], rows: Int[np.ndarray, " M"], clusters: int) -> Int[np.ndarray, " N"]:
    """Numbers clusters by their size among the planned rows, largest first; of equal sizes, the old number decides."""
    sizes = np.bincount(labels[rows], minlength=clusters)
    number = np.empty(clusters, dtype=np.int64)
    number[np.argsort(-sizes, kind="stable")] = np.arange(clusters)
    return number[labels]


def _averages(
    units: Features, labels: Int[np.ndarray, " M"], centres: Float[np.ndarray, "K D"]
) -> Float[np.ndarray, "K D"]:
    """Mean direction of each cluster's members; the old centre where they have none."""
    count, ones = len(labels), np.ones(len(labels), dtype=np.float32)
    member = sparse.csr_array((ones, (labels, np.arange(count))), shape=(len(centres), count))
    sums: Any = member @ units
    means = unit_rows(sums if isinstance(sums, np.ndarray) else sums.toarray())
    return np.where(means.any(axis=1, keepdims=True), means, centres)
