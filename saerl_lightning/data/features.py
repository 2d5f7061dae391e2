"""What is asked of feature rows, sparse or dense, without ever making sparse ones dense. Pure; N rows, F columns.

Sparse matrices go through `Any` here, because their stubs know too little; nowhere else need one.
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


BLOCK = 65_536  # rows that are worked on at once


def blocks(count: int) -> Iterator[slice]:
    """Cuts rows into blocks, so that what is made of them stays small."""
    return (slice(start, start + BLOCK) for start in range(0, count, BLOCK))


def row_count(features: Features) -> int:
    """Number of rows."""
    given: Any = features
    return int(given.shape[0])


def column_count(features: Features) -> int:
    """Number of columns."""
    given: Any = features
    return int(given.shape[1])


def nonfinite_rows(features: Features) -> Int[np.ndarray, " n"]:
    """Rows that hold a NaN or an infinite number."""
    given: Any = features
    dense = isinstance(features, np.ndarray)
    values = given if dense else given.data
    if not values.size or (np.isfinite(values.min()) and np.isfinite(values.max())):  # nothing of their size is made
        return np.zeros(0, dtype=np.int64)
    if dense:
        return np.flatnonzero(~np.isfinite(given).all(axis=1))
    return np.unique(np.searchsorted(given.indptr, np.flatnonzero(~np.isfinite(values)), side="right") - 1)


def deviation(features: Features) -> Float[np.ndarray, " F"]:
    """Standard deviation of every column, of sparse ones from sums that leave zeros alone."""
    given: Any = features
    if isinstance(features, np.ndarray):
        return features.std(axis=0)
    mean = np.ravel(given.mean(axis=0))
    return np.sqrt(np.maximum(np.ravel(given.power(2).mean(axis=0)) - mean**2, 0.0))


def divided(features: Features, scale: Float[np.ndarray, " F"]) -> Features:
    """Every column over its own number."""
    given: Any = features
    if isinstance(features, np.ndarray):
        return features / scale
    return sparse.csr_array((given.data / scale[given.indices], given.indices, given.indptr), given.shape)


def float64(features: Features) -> Features:
    """The same numbers in double precision."""
    given: Any = features
    return given.astype(np.float64)


def columns_first(features: Features) -> Any:
    """The layout that coordinate descent walks along."""
    given: Any = features
    return np.asfortranarray(given) if isinstance(features, np.ndarray) else given.tocsc()


def plain(features: Features) -> Any:
    """The class of sparse matrix that older libraries know; the numbers are shared."""
    return features if isinstance(features, np.ndarray) else sparse.csr_matrix(features)


def dense(features: Features) -> np.ndarray:
    """A handful of rows with their zeros written out."""
    given: Any = features
    return given if isinstance(features, np.ndarray) else given.toarray()


def unit_rows(features: Features) -> Any:
    """Divides every row by its norm, in float32; a row of zeros stays one."""
    given: Any = features
    if isinstance(features, np.ndarray):
        norms = np.linalg.norm(features, axis=1, keepdims=True)
        return np.divide(features, norms, out=np.zeros(features.shape, np.float32), where=norms > 0, casting="unsafe")
    values = given.data.astype(np.float32)
    filled = np.flatnonzero(np.diff(given.indptr))  # reduceat takes the next number for an empty stretch
    norms = np.zeros(row_count(features), dtype=np.float32)
    norms[filled] = np.sqrt(np.add.reduceat(values * values, given.indptr[filled])) if len(filled) else 0
    norms[norms == 0] = 1.0
    values /= np.repeat(norms, np.diff(given.indptr))
    return sparse.csr_array((values, given.indices, given.indptr), given.shape)


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
