"""Feature columns taken out of a probe's sight: the weightiest ones, or random ones that are as active. Pure.

What is left shows how far an order hangs on few features. Taking any columns out changes an order somewhat; hence the random
ones, which are matched by the share of prompts they are active in. N rows, F columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from saerl_lightning.data.feature_rows import column_count, deviation, row_count
from saerl_lightning.errors import InputError

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features

NEAREST = 10  # columns of about the same activity that a random one is drawn from


def top_columns(weights: Float[np.ndarray, " F"], features: Features, count: int) -> Int[np.ndarray, " j"]:
    """Gives the columns that move a linear probe's predictions most: by |weight| times the column's standard deviation.

    Args:
        weights: of the probe, (F,).
        features: the rows it rates, (N, F).
        count: columns wanted; fewer come back if fewer move anything.

    Raises:
        InputError: if `count` is below 0, or weights and columns differ in number.
    """
    if count < 0 or len(weights) != column_count(features):
        raise InputError(f"{count} top columns of {len(weights)} weights and {column_count(features)} columns")
    moves = np.abs(weights) * deviation(features)
    order = np.argsort(-moves, kind="stable")[:count]
    return order[moves[order] > 0]


def activity(features: Features) -> Float[np.ndarray, " F"]:
    """Share of rows in which each column is not 0."""
    given: Any = features
    if isinstance(features, np.ndarray):
        return (features != 0).mean(axis=0)
    counts = np.bincount(given.indices[given.data != 0], minlength=column_count(features))
    return counts / max(row_count(features), 1)


def equally_active(columns: Int[np.ndarray, " j"], features: Features, seed: int) -> Int[np.ndarray, " j"]:
    """Draws for each of the columns another one that is active in about as many rows; none twice, none of the columns.

    Args:
        columns: to be matched, (j,).
        features: (N, F).
        seed: of the draw: one of the 10 columns of nearest activity that are left.

    Raises:
        InputError: if there are not as many other columns that are ever active.
    """
    share, random = activity(features), np.random.default_rng(seed)
    left = np.setdiff1d(np.flatnonzero(share > 0), columns)
    if len(left) < len(columns):
        raise InputError(
            f"{len(columns)} columns to match, but only {len(left)} others are ever active; take out fewer"
        )
    drawn = np.empty(len(columns), dtype=np.int64)
    for place, column in enumerate(columns):
        near = np.argsort(np.abs(share[left] - share[column]), kind="stable")[:NEAREST]
        chosen = random.choice(near)
        drawn[place], left = left[chosen], np.delete(left, chosen)
    return drawn


def without(features: Features, columns: Int[np.ndarray, " j"]) -> Features:
    """A copy of the rows with these columns at 0.

    Args:
        features: (N, F).
        columns: (j,).
    """
    keep = np.ones(column_count(features))
    keep[columns] = 0
    given: Any = features
    if isinstance(features, np.ndarray):
        return features * keep
    return sparse.csr_array((given.data * keep[given.indices], given.indices, given.indptr), given.shape)
