"""Dealing rows into batches that are each as diverse as can be, by the log-determinant of what they span. Pure numpy.

C candidates, W batches of P, D columns.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int


def deal_diverse(units: Float[np.ndarray, "C D"], batches: int, size: int, scale: float) -> Int[np.ndarray, "W P"]:
    """Deals all candidates into batches, which take turns: each takes the row that adds most to its log-determinant.

    A batch holds M = I + scale * (sum of phi phi^T over its rows) and takes argmax log(1 + scale * phi^T M^-1 phi), which is
    the gain in log det M; M^-1 follows by a rank-one update. Equal gains go to the earlier candidate.

    Args:
        units: rows of norm 1 (or 0, taken last), (C, D) with C = batches * size.
        batches: how many (W).
        size: of a batch (P).
        scale: weight of a row against the identity, above 0.

    Returns:
        The candidates of each batch, in their present order.

    Source: greedy selection by log-determinant is IRDS' (arXiv 2605.28247), with equal weights here; dealing a whole window,
    in turns, is ours.
    """
    units = units.astype(np.float64)
    inverse = np.repeat(np.eye(units.shape[1])[None], batches, axis=0)  # (W, D, D)
    norms = (units * units).sum(axis=1).round(6)  # rounded, so that all units are equal at first
    gain = np.repeat(norms[None], batches, axis=0)  # (W, C): phi^T M^-1 phi, -inf once dealt
    dealt = np.empty((batches, size), dtype=np.int64)
    for turn in range(size):
        for b in range(batches):
            taken = int(gain[b].argmax())
            dealt[b, turn] = taken
            towards = inverse[b] @ units[taken]
            shrink = scale / (1 + scale * gain[b, taken])
            inverse[b] -= shrink * np.outer(towards, towards)
            gain[b] -= shrink * (units @ towards) ** 2
            gain[:, taken] = -np.inf
    return np.sort(dealt, axis=1)


def log_determinant(units: Float[np.ndarray, "P D"], scale: float) -> float:
    """Log det(I + scale * sum of phi phi^T): 0 for no rows, highest where all rows are orthogonal."""
    rows = units.astype(np.float64)
    return float(np.linalg.slogdet(np.eye(rows.shape[1]) + scale * rows.T @ rows)[1])
