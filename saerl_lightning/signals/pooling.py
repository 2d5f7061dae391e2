"""Poolings of a prompt's token features into one row: mean, max, last token, or active anywhere.

Pure functions over sparse codes (a CSR row per token) or dense rows. The first token is never pooled, because it is an
attention sink in most models. Sparse codes stay sparse. n tokens (or trie nodes), P prompts, F feature columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

Paths = Sequence[Int[np.ndarray, " _"]]  # P, the rows of each prompt's tokens; prompts may share rows
SparsePooling = Callable[[csr_array, Paths, int], csr_array]
DensePooling = Callable[[Float[np.ndarray, "n d"], Paths], Float[np.ndarray, "P d"]]


def mean(codes: csr_array, paths: Paths, top: int) -> csr_array:
    """Averages codes over all pooled tokens of a prompt, with zeros where a feature is inactive.

    Args:
        codes: Codes of all tokens, (n, F), not negative.
        paths: Rows of each prompt's tokens. A prompt with one token gets an empty row.
        top: Number of largest entries kept per row.

    Returns:
        Pooled rows, (P, F), with ascending columns in each row.
    """
    sums = _sums(codes, paths)
    counts = np.maximum([len(path) - 1 for path in paths], 1)
    sums.data[:] /= np.repeat(counts, np.diff(sums.indptr)).astype(sums.dtype)
    return strongest(sums, top)


def maximum(codes: csr_array, paths: Paths, top: int) -> csr_array:
    """Takes the largest value over the pooled tokens. Arguments and result are those of `mean`."""
    tokens, (_, columns) = csr_array(codes[_pooled(paths)]), _size(codes)
    if not tokens.nnz:
        return csr_array((len(paths), columns), dtype=codes.dtype)
    prompt = np.repeat(np.arange(len(paths)), [max(len(path) - 1, 0) for path in paths])
    # The maximum per (prompt, feature) without a dense matrix: sort the entries by cell, then reduce each run of equal
    # cells.
    cell = np.repeat(prompt, np.diff(tokens.indptr)) * columns + tokens.indices
    order = np.argsort(cell, kind="stable")
    cells, first = np.unique(cell[order], return_index=True)
    values = np.maximum.reduceat(tokens.data[order], first)
    places = (cells // columns, cells % columns)
    return strongest(csr_array((values, places), shape=(len(paths), columns)), top)


def last(codes: csr_array, paths: Paths, top: int) -> csr_array:
    """Takes the codes of the last token. Arguments and result are those of `mean`."""
    return mean(codes, [path[[0, -1]] if len(path) > 1 else path for path in paths], top)


def binary(codes: csr_array, paths: Paths, top: int) -> csr_array:
    """Gives 1 where a feature is active on any pooled token. Arguments and result are those of `mean`.

    If more than `top` features are active, those active on the most tokens are kept.
    """
    active = csr_array((np.ones_like(codes.data), codes.indices, codes.indptr), shape=_size(codes))
    rows = strongest(_sums(active, paths), top)
    rows.data[:] = 1
    return rows


def strongest(rows: csr_array, top: int) -> csr_array:
    """Keeps the `top` largest entries of each row. Of equal entries, those in lower columns are kept."""
    rows.sort_indices()
    count, _ = _size(rows)
    row = np.repeat(np.arange(count), np.diff(rows.indptr))
    # NaN counts as largest, so that it is kept and a later check finds it.
    strength = np.nan_to_num(rows.data, nan=np.inf)
    order = np.lexsort((rows.indices, np.negative(strength), row))
    rank = np.empty(rows.nnz, dtype=np.int64)
    rank[order] = np.arange(rows.nnz) - rows.indptr[:-1][row[order]]
    kept = (rank < top) & (rows.data != 0)
    indptr = np.concatenate([[0], np.bincount(row[kept], minlength=count).cumsum()])
    # int32 indices take half the memory, and one batch never exceeds their range.
    narrow = (rows.indices[kept].astype(np.int32), indptr.astype(np.int32))
    return csr_array((rows.data[kept], *narrow), shape=_size(rows))


def dense_mean(hidden: Float[np.ndarray, "n d"], paths: Paths) -> Float[np.ndarray, "P d"]:
    """Averages dense rows over the pooled tokens of each prompt; zero for a prompt with one token."""
    return _each(hidden, paths, lambda tokens: tokens.mean(0))


def dense_maximum(hidden: Float[np.ndarray, "n d"], paths: Paths) -> Float[np.ndarray, "P d"]:
    """Takes the largest value of each column over the pooled tokens; zero for a prompt with one token."""
    return _each(hidden, paths, lambda tokens: tokens.max(0))


def dense_last(hidden: Float[np.ndarray, "n d"], paths: Paths) -> Float[np.ndarray, "P d"]:
    """Takes the row of the last token; zero for a prompt with one token."""
    return _each(hidden, paths, lambda tokens: tokens[-1])


def _each(hidden: np.ndarray, paths: Paths, pool: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    rows = np.zeros((len(paths), hidden.shape[1]), dtype=hidden.dtype)
    for row, path in zip(rows, paths, strict=True):
        if len(path) > 1:
            row[:] = pool(hidden[path[1:]])
    return rows


def _pooled(paths: Paths) -> Int[np.ndarray, " m"]:
    return np.concatenate([np.empty(0, dtype=np.int64), *(path[1:] for path in paths)])


def _sums(codes: csr_array, paths: Paths) -> csr_array:
    """Sums over the pooled tokens, (P, F): multiplies by the (P, n) matrix with a 1 for each pooled token."""
    nodes = _pooled(paths)
    indptr = np.concatenate([[0], np.cumsum([max(len(path) - 1, 0) for path in paths], dtype=np.int64)])
    pooled = csr_array((np.ones(len(nodes), dtype=codes.dtype), nodes, indptr), shape=(len(paths), _size(codes)[0]))
    return csr_array(pooled @ codes)


def _size(matrix: csr_array) -> tuple[int, int]:
    rows, columns = matrix.shape  # type: ignore[misc]
    return rows, columns


SPARSE: dict[str, SparsePooling] = {"mean": mean, "max": maximum, "last": last, "binary": binary}
DENSE: dict[str, DensePooling] = {"mean": dense_mean, "max": dense_maximum, "last": dense_last}
