"""Spherical k-means: groups rows by direction. Pure functions over matrices; sparse rows stay sparse.

scikit-learn's (mini-batch) k-means of the unit rows gives the starting points. Rounds of assignment by cosine and
averaging then lead to a fixed point of the spherical objective. M rows, F columns, D reduced columns, K clusters.
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

ROUNDS = 20  # largest number of rounds
SKETCHED = 50_000  # largest number of rows from which the reduced columns are computed


def directions(features: Features, rows: Int[np.ndarray, " M"], components: int, seed: int) -> Float[np.ndarray, "F D"]:
    """Computes the directions of largest variation of the unit rows: right singular vectors, by randomised SVD.

    Args:
        features: Feature rows, (N, F).
        rows: Rows to use; above 50,000, a random sample of 50,000.
        components: Number of directions (D).
        seed: Seed of the sample and of the SVD.
    """
    from sklearn.utils.extmath import randomized_svd

    seen = rows if len(rows) <= SKETCHED else np.random.default_rng(seed).choice(rows, SKETCHED, replace=False)
    settings: Any = {"n_iter": 2, "random_state": seed}
    return randomized_svd(unit_rows(features[seen]), components, **settings)[2].T.astype(np.float32)


def project(features: Features, onto: Float[np.ndarray, "F D"]) -> Float[np.ndarray, "N D"]:
    """Projects unit rows onto the directions and scales them to norm 1, in float32 and by blocks. Zero rows stay zero."""
    reduced = np.empty((row_count(features), onto.shape[1]), dtype=np.float32)
    for block in blocks(len(reduced)):
        reduced[block] = unit_rows(unit_rows(features[block]) @ onto)
    return reduced


def reduced_units(features: Features, rows: Int[np.ndarray, " M"], components: int | None, seed: int) -> Features:
    """Returns unit rows, reduced to `components` columns if they have more."""
    if components is None or components >= min(len(rows), row_count(features), column_count(features)):
        return unit_rows(features)
    return project(features, directions(features, rows, components, seed))


def spherical_kmeans(units: Features, clusters: int, seed: int, minibatch: bool) -> Float[np.ndarray, "K D"]:
    """Finds cluster centres of norm 1 by cosine similarity.

    Args:
        units: Unit rows, (M, D).
        clusters: Number of clusters (K), at most M.
        seed: Seed of the starting points.
        minibatch: Whether mini-batch k-means finds the starting points, for many rows.

    Returns:
        The centres. A centre without members stays at its starting point.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    chosen: Any = MiniBatchKMeans if minibatch else KMeans
    settings = {"batch_size": 4096, "n_init": 3, "max_iter": 20} if minibatch else {"n_init": 4}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than clusters leave some empty
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
    """Returns the centre with the largest cosine for each row, by blocks. Of equal ones, the first is taken."""
    count = row_count(units)
    labels = np.empty(count, dtype=np.int64)
    for block in blocks(count):
        labels[block] = (units[block] @ centres.T).argmax(axis=1)
    return labels


def largest_first(labels: Int[np.ndarray, " N"], rows: Int[np.ndarray, " M"], clusters: int) -> Int[np.ndarray, " N"]:
    """Renumbers clusters by their size among the planned rows, largest first. Equal sizes keep their order."""
    sizes = np.bincount(labels[rows], minlength=clusters)
    number = np.empty(clusters, dtype=np.int64)
    number[np.argsort(-sizes, kind="stable")] = np.arange(clusters)
    return number[labels]


def _averages(
    units: Features, labels: Int[np.ndarray, " M"], centres: Float[np.ndarray, "K D"]
) -> Float[np.ndarray, "K D"]:
    """Computes the mean direction of each cluster's members, or keeps the old centre if there are none."""
    count, ones = len(labels), np.ones(len(labels), dtype=np.float32)
    member = sparse.csr_array((ones, (labels, np.arange(count))), shape=(len(centres), count))
    sums: Any = member @ units
    means = unit_rows(sums if isinstance(sums, np.ndarray) else sums.toarray())
    return np.where(means.any(axis=1, keepdims=True), means, centres)
