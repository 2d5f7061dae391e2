"""Batches in numbers: whose cluster each step serves and how hard it is. Pure; it draws nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from saerl_lightning.report.ledger import Ledger

MAJORITY = 0.5  # of a batch makes it the cluster's
TREND = 60  # points of the overall trend
WINDOW = 0.1  # of the epoch that a point of the trend averages: longer than a round through all clusters


@dataclass(frozen=True, eq=False)
class BatchTable:
    """One row a batch, B of them, and one a served prompt, S of them."""

    step: Int[np.ndarray, " B"]  # from 0
    cluster: Int[np.ndarray, " B"]  # that fills at least half of the batch; -1 for none
    difficulty: Float[np.ndarray, " B"]  # mean over its rated prompts; NaN without
    prompt_step: Int[np.ndarray, " S"]
    prompt_cluster: Int[np.ndarray, " S"]
    prompt_difficulty: Float[np.ndarray, " S"]

    def trend(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """A tenth of the epoch around each of at most 60 steps, over its rated prompts.

        Returns:
            The steps (from 1), and there the tenth percentile, the mean and the ninetieth percentile.
        """
        rated = np.isfinite(self.prompt_difficulty)
        order = np.argsort(self.prompt_step[rated], kind="stable")
        steps, values = self.prompt_step[rated][order], self.prompt_difficulty[rated][order]
        centres = np.unique(np.linspace(0, len(self.step) - 1, TREND).round().astype(int))
        reach = WINDOW / 2 * len(self.step)
        ends = np.searchsorted(steps, centres - reach), np.searchsorted(steps, centres + reach, side="right")
        windows = [(c, values[low:high]) for c, low, high in zip(centres, *ends, strict=True) if high > low]
        numbers = np.array([(c + 1, *np.percentile(w, [10, 90]), w.mean()) for c, w in windows]).reshape(-1, 4)
        return numbers[:, 0].astype(int), numbers[:, 1], numbers[:, 3], numbers[:, 2]

    def shares(self, clusters: Sequence[int], most: int) -> tuple[Float[np.ndarray, "K C"], Int[np.ndarray, " C"]]:
        """Share of each stretch of the epoch that each cluster fills, in at most `most` stretches, with first steps."""
        columns = min(most, len(self.step))
        which = self.prompt_step * columns // len(self.step)
        counts = np.zeros((len(clusters), columns))
        listed = np.isin(self.prompt_cluster, clusters)
        np.add.at(counts, (np.searchsorted(clusters, self.prompt_cluster[listed]), which[listed]), 1)
        first = np.unique(self.step * columns // len(self.step), return_index=True)[1]
        return counts / np.bincount(which, minlength=columns), first + 1


def batch_table(ledger: Ledger) -> BatchTable:
    """Counts what each batch of a ledger holds."""
    served = np.flatnonzero(ledger.served)
    step, cluster, difficulty = ledger.batch[served], ledger.cluster[served], ledger.difficulty[served]
    rated = np.isfinite(difficulty)
    totals = np.bincount(step[rated], difficulty[rated], ledger.batches)
    number = np.bincount(step[rated], minlength=ledger.batches)
    mean = np.where(number > 0, totals / np.maximum(number, 1), np.nan)
    return BatchTable(np.arange(ledger.batches), _majority(step, cluster, ledger), mean, step, cluster, difficulty)


def binned(x: np.ndarray, y: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Averages neighbouring points until at most `most` are left; points without a y are left out."""
    known = np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) <= most:
        return x, y
    which = np.arange(len(x)) * most // len(x)
    size = np.bincount(which)
    return np.bincount(which, x) / size, np.bincount(which, y) / size


def _majority(step: np.ndarray, cluster: np.ndarray, ledger: Ledger) -> Int[np.ndarray, " B"]:
    owner = np.full(ledger.batches, -1, dtype=np.int64)
    cells, sizes = np.unique(np.stack([step, cluster]), axis=1, return_counts=True)
    full = (sizes >= MAJORITY * ledger.batch_size) & (cells[1] >= 0)
    owner[cells[0, full]] = cells[1, full]  # of two halves, the cluster of the higher number
    return owner
