"""Exchanging values among members of a group, for nulls that keep everything but who has which value. Pure numpy."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, Shaped


def permute_within(
    values: Shaped[np.ndarray, " N"], groups: Int[np.ndarray, " N"], rows: Int[np.ndarray, " M"], seed: int
) -> Shaped[np.ndarray, " N"]:
    """Permutes values at random among the planned rows of each group; the other rows keep theirs.

    Args:
        values: (N,).
        groups: group of every row, (N,).
        rows: planned rows, (M,); their order does not matter.
        seed: of the permutation.
    """
    given = np.sort(rows)
    drawn = np.random.default_rng(seed).permutation(given)
    given, drawn = (each[np.argsort(groups[each], kind="stable")] for each in (given, drawn))  # both group by group
    permuted = values.copy()
    permuted[given] = values[drawn]
    return permuted
