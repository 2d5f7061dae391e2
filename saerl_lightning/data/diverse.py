"""Batches of dissimilar prompts, selected by log-determinant. They are an alternative to cluster-first batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from saerl_lightning.data.callback import DataCallback
from saerl_lightning.data.features import dense
from saerl_lightning.data.kmeans import reduced_units
from saerl_lightning.data.labels import require_features
from saerl_lightning.plan import SamplePlan, note_moves, share_moved
from saerl_lightning.ranges import Count, CountFrom2, Positive, Seed, require_in_range
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features


def assign_diverse(units: Float[np.ndarray, "C D"], batches: int, size: int, scale: float) -> Int[np.ndarray, "W P"]:
    """Assigns candidates to batches in turns; each batch takes the row that increases its log-determinant most.

    A batch has M = I + scale * (sum of phi phi^T over its rows) and takes argmax log(1 + scale * phi^T M^-1 phi), which
    is the increase of log det M. M^-1 is updated by a rank-one formula. Of equal increases, the earlier candidate is
    taken.

    Args:
        units: Rows of norm 1 (or 0, taken last), (C, D) with C = batches * size.
        batches: Number of batches (W).
        size: Number of rows per batch (P).
        scale: Weight of a row relative to the identity, above 0.

    Returns:
        The candidates of each batch, in their original order.

    Source: greedy selection by log-determinant is IRDS' (arXiv 2605.28247), here with equal weights; assigning a whole
    window in turns is ours.
    """
    units = units.astype(np.float64)
    inverse = np.repeat(np.eye(units.shape[1])[None], batches, axis=0)  # (W, D, D)
    # Rounded, so that all unit rows have equal norms and the first choice does not depend on rounding errors.
    norms = (units * units).sum(axis=1).round(6)
    gain = np.repeat(norms[None], batches, axis=0)  # (W, C): phi^T M^-1 phi, -inf once assigned
    assigned = np.empty((batches, size), dtype=np.int64)
    for turn in range(size):
        for b in range(batches):
            taken = int(gain[b].argmax())
            assigned[b, turn] = taken
            # Sherman-Morrison: M^-1 and the gains of all candidates follow from one matrix-vector product.
            towards = inverse[b] @ units[taken]
            shrink = scale / (1 + scale * gain[b, taken])
            inverse[b] -= shrink * np.outer(towards, towards)
            gain[b] -= shrink * (units @ towards) ** 2
            gain[:, taken] = -np.inf
    return np.sort(assigned, axis=1)


def log_determinant(units: Float[np.ndarray, "P D"], scale: float) -> float:
    """Computes log det(I + scale * sum of phi phi^T): 0 without rows, highest for orthogonal rows."""
    rows = units.astype(np.float64)
    return float(np.linalg.slogdet(np.eye(rows.shape[1]) + scale * rows.T @ rows)[1])


class DiverseBatches(DataCallback):
    """Reassigns the prompts of neighbouring batches so that each batch spans as many directions as possible.

    Prompts stay inside their window, so the order of difficulty between windows is kept. For the slot `extra`.

    Source: greedy log-determinant selection is IRDS' (arXiv 2605.28247), without its weights.

    Args:
        window: Number of neighbouring batches whose prompts are reassigned together.
        components: Number of columns of the unit rows after truncated SVD.
        scale: Weight of a prompt's direction relative to the identity in the determinant.
        seed: Seed of the SVD.

    Raises:
        InputError: if an argument is out of range.
    """

    def __init__(self, window: CountFrom2 = 8, components: Count = 32, scale: Positive = 1.0, seed: Seed = 0) -> None:
        self.window = window
        self.components = components
        self.scale = scale
        self.seed = seed
        require_in_range(self)

    @property
    def needs_features(self) -> bool:
        """True, because diversity is computed from feature rows."""
        return True

    def apply(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> SamplePlan:
        """Reassigns each window. The order inside a batch is kept, and prompts that fill no batch are not moved.

        Raises:
            InputError: if a feature row is not finite.
        """
        rows = require_features(type(self).__name__, prompts, features)
        units: Any = reduced_units(rows, np.sort(plan.rows), self.components, self.seed)
        before = plan.batches()  # (B, P)
        after = before.copy()
        for start in range(0, len(before), self.window):
            members = before[start : start + self.window]
            assigned = assign_diverse(dense(units[members.ravel()]), len(members), plan.batch_size, self.scale)
            after[start : start + self.window] = members.ravel()[assigned]
        moved = note_moves(plan, plan.reorder(np.concatenate([after.ravel(), plan.rows[before.size :]])))
        self._report = {"share": share_moved(plan, moved)} | {
            name: float(np.mean([log_determinant(dense(units[batch]), self.scale) for batch in batches]))
            for name, batches in {"logdet_before": before, "logdet": after}.items()
            if len(batches)
        }
        self._idle = "" if self._report["share"] else "no prompt moves to another batch"
        return moved
