"""Compares two plans over the same prompts: agreement, correlation of the order, and the prompts that move most.

Only ledgers are read, so a plan can be compared with an older one, or with the order that a run served.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from saerl_lightning.errors import InputError
from saerl_lightning.plan_page.ledger import Ledger

MOVERS = 10


@dataclass(frozen=True)
class Mover:
    """A prompt that both plans serve at very different steps."""

    uid: str
    topic: str
    text: str
    before: int  # step in the other plan, from 0
    after: int  # step in this plan, from 0


@dataclass(frozen=True)
class PlanComparison:
    """A comparison of a plan with another one. A number is NaN if either plan has nothing to compare."""

    digests: tuple[str, str]  # other plan, this plan
    batches: tuple[int, int]  # other plan, this plan
    prompts: int  # N
    fates: Mapping[tuple[str, str], int]  # (fate in the other plan, fate in this one) -> number of prompts
    served: int  # number of prompts that both serve
    same_step: int  # number of those served at the same step
    kendall: float  # tau-b of the steps of prompts that both serve; prompts of one batch are tied
    clusters: float  # adjusted Rand index of the clusters
    difficulty: float  # Spearman correlation of the difficulty ratings
    quality: float  # Spearman correlation of the quality ratings
    movers: tuple[Mover, ...]  # largest distance first

    @property
    def changed(self) -> int:
        """Number of prompts whose fate differs."""
        return sum(count for (before, after), count in self.fates.items() if before != after)

    @property
    def identical(self) -> bool:
        """Whether both plans serve the same prompts in the same order."""
        return self.digests[0] == self.digests[1]


def compare(before: Ledger, after: Ledger) -> PlanComparison:
    """Compares a plan (`after`) with another one (`before`) over the same prompts. The prompts may be in any order.

    Raises:
        InputError: if the plans contain different prompts.
    """
    rows = _same_prompts(before, after)  # rows of `before`, in the order of `after`
    fates = Counter(zip(before.fate[rows].tolist(), after.fate.tolist(), strict=True))
    both = before.served[rows] & after.served
    steps = before.batch[rows][both], after.batch[both]
    return PlanComparison(
        (before.digest, after.digest),
        (before.batches, after.batches),
        len(after),
        fates,
        int(both.sum()),
        int((steps[0] == steps[1]).sum()),
        _kendall(*steps),
        _rand_index(before.cluster[rows], after.cluster),
        _spearman(before.difficulty[rows], after.difficulty),
        _spearman(before.quality[rows], after.quality),
        _movers(before, after, rows, both),
    )


def _same_prompts(before: Ledger, after: Ledger) -> Int[np.ndarray, " N"]:
    place = {uid: row for row, uid in enumerate(before.uid.tolist())}
    here = set(after.uid.tolist())
    shared = len(here & place.keys())
    if shared < len(here) or shared < len(place):
        raise InputError(
            f"the two ledgers know different prompts: {shared:,} are in both, {len(place) - shared:,} only in the one to "
            f"compare with, {len(here) - shared:,} only in this plan; compare plans of the same data.train"
        )
    return np.array([place[uid] for uid in after.uid.tolist()], dtype=np.int64)


def _movers(before: Ledger, after: Ledger, rows: Int[np.ndarray, " N"], both: np.ndarray) -> tuple[Mover, ...]:
    """Finds the prompts that move furthest, as a share of the epoch, because the numbers of steps may differ."""
    there = before.batch[rows] / max(1, before.batches - 1)
    moved = np.where(both, np.abs(after.batch / max(1, after.batches - 1) - there), 0.0)
    furthest = np.argsort(-moved, kind="stable")[:MOVERS]
    return tuple(
        Mover(
            str(after.uid[row]),
            str(after.topic[row]),
            str(after.text[row]),
            int(before.batch[rows[row]]),
            int(after.batch[row]),
        )
        for row in furthest.tolist()
        if moved[row] > 0
    )


def _kendall(a: Int[np.ndarray, " n"], b: Int[np.ndarray, " n"]) -> float:
    from scipy.stats import kendalltau

    if not _varies(a) or not _varies(b):
        return float("nan")
    return float(kendalltau(a, b).statistic)  # pyright: ignore[reportAttributeAccessIssue]


def _spearman(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    from scipy.stats import spearmanr

    rated = np.isfinite(a) & np.isfinite(b)
    if not _varies(a[rated]) or not _varies(b[rated]):
        return float("nan")
    return float(spearmanr(a[rated], b[rated]).statistic)  # pyright: ignore[reportAttributeAccessIssue]


def _rand_index(a: Int[np.ndarray, " n"], b: Int[np.ndarray, " n"]) -> float:
    from sklearn.metrics import adjusted_rand_score

    if (a < 0).any() or (b < 0).any():
        return float("nan")
    return float(adjusted_rand_score(a, b))


def _varies(values: np.ndarray) -> bool:
    return len(values) > 1 and bool((values != values[0]).any())
