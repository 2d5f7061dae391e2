"""Functions of feature rows, sparse or dense, that never make sparse rows dense. Pure; N rows, F columns.

Sparse matrices are typed as `Any` here, because their type stubs are incomplete. Other modules need no `Any` for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from saerl_lightning.errors import InputError

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features


BLOCK = 65_536  # rows processed at once


def blocks(count: int) -> Iterator[slice]:
    """Cuts rows into blocks, so that intermediate results stay small."""
    return (slice(start, start + BLOCK) for start in range(0, count, BLOCK))


def row_count(features: Features) -> int:
    """Counts the rows."""
    given: Any = features
    return int(given.shape[0])


def column_count(features: Features) -> int:
    """Counts the columns."""
    given: Any = features
    return int(given.shape[1])


def nonfinite_rows(features: Features) -> Int[np.ndarray, " n"]:
    """Returns the rows that contain NaN or infinity."""
    given: Any = features
    dense = isinstance(features, np.ndarray)
    values = given if dense else given.data
    # NaN and infinity show in minimum or maximum, so the usual case allocates nothing of the features' size.
    if not values.size or (np.isfinite(values.min()) and np.isfinite(values.max())):
        return np.zeros(0, dtype=np.int64)
    if dense:
        return np.flatnonzero(~np.isfinite(given).all(axis=1))
    return np.unique(np.searchsorted(given.indptr, np.flatnonzero(~np.isfinite(values)), side="right") - 1)


def deviation(features: Features) -> Float[np.ndarray, " F"]:
    """Computes the standard deviation of every column, for sparse columns from the sums of their entries."""
    given: Any = features
    if isinstance(features, np.ndarray):
        return features.std(axis=0)
    mean = np.ravel(given.mean(axis=0))
    return np.sqrt(np.maximum(np.ravel(given.power(2).mean(axis=0)) - mean**2, 0.0))


def divided(features: Features, scale: Float[np.ndarray, " F"]) -> Features:
    """Divides every column by its own number."""
    given: Any = features
    if isinstance(features, np.ndarray):
        return features / scale
    return sparse.csr_array((given.data / scale[given.indices], given.indices, given.indptr), given.shape)


def float64(features: Features) -> Features:
    """Converts to double precision."""
    given: Any = features
    return given.astype(np.float64)


def columns_first(features: Features) -> Any:
    """Converts to column-major layout, which coordinate descent reads."""
    given: Any = features
    return np.asfortranarray(given) if isinstance(features, np.ndarray) else given.tocsc()


def plain(features: Features) -> Any:
    """Converts to the class of sparse matrices that older libraries accept. The numbers are shared."""
    return features if isinstance(features, np.ndarray) else sparse.csr_matrix(features)


def dense(features: Features) -> np.ndarray:
    """Converts a few rows to dense rows."""
    given: Any = features
    return given if isinstance(features, np.ndarray) else given.toarray()


def unit_rows(features: Features) -> Any:
    """Divides every row by its norm, in float32. Rows of zeros stay zero."""
    given: Any = features
    if isinstance(features, np.ndarray):
        norms = np.linalg.norm(features, axis=1, keepdims=True)
        return np.divide(features, norms, out=np.zeros(features.shape, np.float32), where=norms > 0, casting="unsafe")
    values = given.data.astype(np.float32)
    filled = np.flatnonzero(np.diff(given.indptr))  # reduceat would use the next entry for an empty row
    norms = np.zeros(row_count(features), dtype=np.float32)
    norms[filled] = np.sqrt(np.add.reduceat(values * values, given.indptr[filled])) if len(filled) else 0
    norms[norms == 0] = 1.0
    values /= np.repeat(norms, np.diff(given.indptr))
    return sparse.csr_array((values, given.indices, given.indptr), given.shape)


NEAREST = 10  # a random column is drawn from this many columns of similar activity


def top_columns(weights: Float[np.ndarray, " F"], features: Features, count: int) -> Int[np.ndarray, " j"]:
    """Returns the columns with the largest effect on a linear probe: |weight| times the column's standard deviation.

    Args:
        weights: Weights of the probe, (F,).
        features: Feature rows that the probe rates, (N, F).
        count: Number of columns wanted. Fewer are returned if fewer have an effect.

    Raises:
        InputError: if `count` is below 0, or the numbers of weights and columns differ.
    """
    if count < 0 or len(weights) != column_count(features):
        raise InputError(f"{count} top columns of {len(weights)} weights and {column_count(features)} columns")
    moves = np.abs(weights) * deviation(features)
    order = np.argsort(-moves, kind="stable")[:count]
    return order[moves[order] > 0]


def activity(features: Features) -> Float[np.ndarray, " F"]:
    """Computes the share of rows in which each column is not 0."""
    given: Any = features
    if isinstance(features, np.ndarray):
        return (features != 0).mean(axis=0)
    counts = np.bincount(given.indices[given.data != 0], minlength=column_count(features))
    return counts / max(row_count(features), 1)


def equally_active(columns: Int[np.ndarray, " j"], features: Features, seed: int) -> Int[np.ndarray, " j"]:
    """Draws, for each column, another column that is active in about as many rows. All drawn columns are different.

    Args:
        columns: Columns to match, (j,).
        features: Feature rows, (N, F).
        seed: Seed of the random draw, which chooses among the 10 remaining columns of most similar activity.

    Raises:
        InputError: if too few other columns are active.
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
    """Copies the rows with some columns set to 0.

    Args:
        features: Feature rows, (N, F).
        columns: Columns to set to 0, (j,).
    """
    keep = np.ones(column_count(features))
    keep[columns] = 0
    given: Any = features
    if isinstance(features, np.ndarray):
        return features * keep
    return sparse.csr_array((given.data * keep[given.indices], given.indices, given.indptr), given.shape)
