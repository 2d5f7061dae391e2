"""What sets a group of feature rows apart from the pool, column by column. Never a dense (N, F) matrix of sparse rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features

ROUNDING = 1e-9  # of sums; a column that is the same everywhere has a lift of 1
COMMON = 0.2  # a feature that fewer members than this share have tells little about the group


@dataclass(frozen=True)
class Strength:
    """A feature that a group has more of than the pool."""

    feature: str  # its name, or its number
    effect: float  # lift: mean in the group over mean in the pool; signed columns: difference in standard deviations
    inside: float  # share of the group that has it; NaN for signed columns, which every row has
    everywhere: float  # share of the pool that has it


def strongest_features(
    features: Features, group: Int[np.ndarray, " N"], names: Sequence[str] | None = None, most: int = 6
) -> dict[int, list[Strength]]:
    """Finds the columns that lie furthest above the pool in each group.

    Columns without negative entries (SAE activations, TF-IDF) are ranked by lift, and only those that a fifth of the
    group has; signed ones (hidden states, random numbers) by the difference of means in standard deviations.

    Args:
        features: (N, F).
        group: of each row; negative ones belong to the pool only.
        names: of the columns; null shows their numbers.
        most: features a group.

    Returns:
        By group, its features, the strongest first.
    """
    import scipy.sparse as sparse

    numbers, sizes = np.unique(group[group >= 0], return_counts=True)
    rows = np.flatnonzero(group >= 0)
    place = np.searchsorted(numbers, group[rows])
    picks = sparse.csr_array((np.ones(len(rows)), (place, rows)), shape=(len(numbers), len(group)))
    matrix = sparse.csr_array(features) if not isinstance(features, np.ndarray) else features
    rank = _by_difference if (matrix.min() < 0) else _by_lift
    return {int(number): rank(matrix, picks[[k]], sizes[k], names, most) for k, number in enumerate(numbers)}


def _by_lift(features: Any, pick: Any, size: int, names: Sequence[str] | None, most: int) -> list[Strength]:
    has = features != 0  # (N, F) booleans, sparse where the rows are
    inside, everywhere = _row(pick @ has.astype(np.float64)) / size, _row(has.mean(0))
    pool = _row(features.mean(0))
    lift = _row(pick @ features) / size / np.where(pool > 0, pool, np.inf)
    score = np.where(inside >= COMMON, lift, 0.0)
    best = np.argsort(-score, kind="stable")[:most]
    return [
        Strength(_name(names, f), float(lift[f]), float(inside[f]), float(everywhere[f]))
        for f in best
        if score[f] > 1 + ROUNDING
    ]


def _by_difference(features: Any, pick: Any, size: int, names: Sequence[str] | None, most: int) -> list[Strength]:
    pool = _row(features.mean(0))
    spread = np.sqrt(np.maximum(_row((features * features).mean(0)) - pool**2, 0))
    effect = (_row(pick @ features) / size - pool) / np.where(spread > 0, spread, np.inf)
    best = np.argsort(-effect, kind="stable")[:most]
    return [Strength(_name(names, f), float(effect[f]), np.nan, np.nan) for f in best if effect[f] > ROUNDING]


def nearest_to_centre(features: Features, members: Int[np.ndarray, " n"], most: int = 3) -> Int[np.ndarray, " m"]:
    """The members whose rows point most nearly where the group's mean unit row points, nearest first."""
    from sklearn.preprocessing import normalize

    rows: Any = normalize(features[members])
    closeness = _row(rows @ _row(rows.mean(0)))  # (n,)
    return members[np.argsort(-closeness, kind="stable")[:most]]


def _row(matrix: Any) -> Float[np.ndarray, " X"]:
    dense = matrix.toarray() if hasattr(matrix, "toarray") else np.asarray(matrix)
    return dense.ravel()


def _name(names: Sequence[str] | None, column: int) -> str:
    return str(names[column]) if names is not None else f"#{column}"
