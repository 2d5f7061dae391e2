"""The map: feature rows to points in the plane, neighbours beside each other. Distances across the map mean nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features

COMPONENTS = 50  # of the rows before neighbours are sought; t-SNE's authors' own choice
FEWEST = 30  # points for which neighbourhoods mean something; fewer are only projected


def sample(pool: int, most: int, seed: int = 0) -> Int[np.ndarray, " n"]:
    """At most `most` rows of the pool, drawn without replacement, sorted."""
    if pool <= most:
        return np.arange(pool)
    return np.sort(np.random.default_rng(seed).permutation(pool)[:most])


def map_points(features: Features, seed: int = 0) -> Float[np.ndarray, "n 2"]:
    """Lays feature rows out in the plane: unit length, then 50 principal directions, then t-SNE.

    Args:
        features: (n, F), no more rows than a page can show (t-SNE takes about 3 ms a row).
        seed: of the projection.

    Returns:
        Points with each axis in [-1, 1]. The same rows give the same map.

    Source: t-SNE, van der Maaten and Hinton 2008; the unit rows are those that spherical clusters are made of.
    """
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import normalize

    reduced = _reduce(normalize(features), seed)
    if len(np.unique(reduced, axis=0)) < FEWEST:
        return _fit(reduced)
    perplexity = min(30.0, (len(reduced) - 1) / 3)
    points = TSNE(2, init="pca", perplexity=perplexity, max_iter=400, angle=0.8, random_state=seed, n_jobs=1)
    return _fit(points.fit_transform(reduced))


def _reduce(rows: Any, seed: int) -> Float[np.ndarray, "n C"]:
    """Singular directions of the rows, two at least; sparse rows stay sparse."""
    from sklearn.decomposition import TruncatedSVD

    most = min(COMPONENTS, rows.shape[1] - 1, rows.shape[0] - 1)
    if most < 2 or (rows.max(0) - rows.min(0)).max() == 0:  # nothing to decompose
        dense = rows if isinstance(rows, np.ndarray) else rows.toarray()
        return np.pad(dense, ((0, 0), (0, max(0, 2 - dense.shape[1]))))[:, :2]
    return TruncatedSVD(most, random_state=seed).fit_transform(rows)


def _fit(points: Float[np.ndarray, "n C"]) -> Float[np.ndarray, "n 2"]:
    """The first two columns, each scaled to [-1, 1]."""
    plane = points[:, :2] - (points[:, :2].max(0) + points[:, :2].min(0)) / 2
    return plane / np.maximum(np.abs(plane).max(0), 1e-12)
