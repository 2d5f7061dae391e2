"""What is asked of feature rows, sparse or dense, without ever making sparse ones dense. Pure; N rows, F columns.

Sparse matrices go through `Any` here, because their stubs know too little; nowhere else need one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

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
