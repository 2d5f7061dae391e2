"""Batches that hold unlike prompts: the opposite of cluster-first, as a rival to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saerl_lightning.data.callback import DataCallback, note_moves, share_moved
from saerl_lightning.data.feature_rows import dense
from saerl_lightning.data.kmeans import reduced_units
from saerl_lightning.data.labels import require_features
from saerl_lightning.data.logdet import deal_diverse, log_determinant
from saerl_lightning.plan import SamplePlan
from saerl_lightning.ranges import Count, CountFrom2, Positive, Seed, require_in_range
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features


class DiverseBatches(DataCallback):
    """Deals the prompts of neighbouring batches anew, so that every batch spans as many directions as it can.

    Prompts stay inside their window, so the order of difficulty survives from window to window. For the slot `extra`.

    Source: greedy log-determinant selection is IRDS' (arXiv 2605.28247), without its weights.

    Args:
        window: neighbouring batches that are dealt together.
        components: columns that the unit rows are reduced to by truncated SVD.
        scale: weight of a prompt's direction against the identity that the determinant starts from.
        seed: of the SVD.

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
        """Diversity is that of feature rows."""
        return True

    def apply(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> SamplePlan:
        """Deals every window; inside a batch the present order stays, and what fills no batch stays where it is.

        Raises:
            InputError: if a feature row is not finite.
        """
        rows = require_features(type(self).__name__, prompts, features)
        units: Any = reduced_units(rows, np.sort(plan.rows), self.components, self.seed)
        before = plan.batches()  # (B, P)
        after = before.copy()
        for start in range(0, len(before), self.window):
            members = before[start : start + self.window]
            dealt = deal_diverse(dense(units[members.ravel()]), len(members), plan.batch_size, self.scale)
            after[start : start + self.window] = members.ravel()[dealt]
        moved = note_moves(plan, plan.reorder(np.concatenate([after.ravel(), plan.rows[before.size :]])))
        self._report = {"share": share_moved(plan, moved)} | {
            name: float(np.mean([log_determinant(dense(units[batch]), self.scale) for batch in batches]))
            for name, batches in {"logdet_before": before, "logdet": after}.items()
            if len(batches)
        }
        self._idle = "" if self._report["share"] else "no prompt moves to another batch"
        return moved
