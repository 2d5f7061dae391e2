"""The map of prompts: projects feature rows to the plane by t-SNE. Only neighbourhoods are meaningful, not distances."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features

COMPONENTS = 50  # columns before t-SNE, as its authors chose
FEWEST = 30  # smallest number of distinct points for t-SNE; fewer are only projected


def sample(pool: int, most: int, seed: int = 0) -> Int[np.ndarray, " n"]:
    """Draws at most `most` rows of the pool without replacement, in order."""
    if pool <= most:
        return np.arange(pool)
    return np.sort(np.random.default_rng(seed).permutation(pool)[:most])


def map_points(features: Features, seed: int = 0) -> Float[np.ndarray, "n 2"]:
    """Projects feature rows to the plane: unit length, then 50 principal directions, then t-SNE.

    Args:
        features: Feature rows, (n, F). t-SNE takes about 3 ms per row.
        seed: Seed of the projection.

    Returns:
        Points with both coordinates in [-1, 1]. Equal rows give equal maps.

    Source: t-SNE, van der Maaten and Hinton 2008. Spherical k-means uses the same unit rows.
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
    """Projects rows onto at least two singular directions. Sparse rows stay sparse until then."""
    from sklearn.decomposition import TruncatedSVD

    most = min(COMPONENTS, rows.shape[1] - 1, rows.shape[0] - 1)
    if most < 2 or (rows.max(0) - rows.min(0)).max() == 0:  # too few or equal rows
        dense = rows if isinstance(rows, np.ndarray) else rows.toarray()
        return np.pad(dense, ((0, 0), (0, max(0, 2 - dense.shape[1]))))[:, :2]
    return TruncatedSVD(most, random_state=seed).fit_transform(rows)


def _fit(points: Float[np.ndarray, "n C"]) -> Float[np.ndarray, "n 2"]:
    """Scales the first two columns to [-1, 1]."""
    plane = points[:, :2] - (points[:, :2].max(0) + points[:, :2].min(0)) / 2
    return plane / np.maximum(np.abs(plane).max(0), 1e-12)
