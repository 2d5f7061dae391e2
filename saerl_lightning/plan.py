"""SamplePlan: the order in which prompts are trained on, with reasons. A plan is frozen; operations return new plans.

N prompts in the pool, M <= N planned, P a batch, B = M // P whole batches. The last M - B * P planned prompts don't
fill a batch and are not served; the ledger records this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float, Int

from saerl_lightning.errors import InputError

NO_CLUSTER = -1
NOT_MIXED = -1
NOT_SERVED = -1


@dataclass(frozen=True, eq=False)
class SamplePlan:
    """The planned order of a pool's prompts, and the reason why each is served or not."""

    rows: Int[np.ndarray, " M"]  # pool rows in the order they are served
    batch_size: int  # P
    cluster: Int[np.ndarray, " N"]  # NO_CLUSTER without clustering
    difficulty: Float[np.ndarray, " N"]  # NaN where not predicted
    quality: Float[np.ndarray, " N"]  # NaN where not predicted
    mixed_from: Int[np.ndarray, " N"]  # batch of the prompt before mixing moved it, else NOT_MIXED
    dropped: Mapping[int, str] = field(default_factory=dict)  # pool row -> reason

    @classmethod
    def sequential(cls, pool: int, batch_size: int) -> SamplePlan:
        """Plans the whole pool in its own order, `batch_size` prompts a step."""
        nothing = np.full(pool, np.nan)
        none = np.full(pool, -1, dtype=np.int64)
        return cls(np.arange(pool), batch_size, none, nothing, nothing.copy(), none.copy())

    def __repr__(self) -> str:
        """Returns one line, because a notebook shows it."""
        served = len(self.rows) // self.batch_size * self.batch_size
        fates = f"{served} served, {len(self.rows) - served} not served, {len(self.dropped)} dropped"
        batches = f"{served // self.batch_size} batches of {self.batch_size}"
        return f"<SamplePlan: {len(self.cluster)} prompts, {fates}, in {batches}>"

    def batches(self) -> Int[np.ndarray, "B P"]:
        """Returns the pool rows of all whole batches, in the order of training."""
        whole = len(self.rows) // self.batch_size
        return self.rows[: whole * self.batch_size].reshape(whole, self.batch_size)

    def batch_of(self) -> Int[np.ndarray, " N"]:
        """Returns the batch that serves each prompt of the pool; NOT_SERVED for none."""
        batches = self.batches()  # (B, P)
        batch = np.full(len(self.cluster), NOT_SERVED, dtype=np.int64)
        batch[batches] = np.arange(len(batches))[:, None]
        return batch

    def drop(self, reasons: Mapping[int, str]) -> SamplePlan:
        """Returns the plan without the given pool rows, in the same order."""
        kept = self.rows[~np.isin(self.rows, list(reasons))]
        return replace(self, rows=kept, dropped={**self.dropped, **reasons})

    def reorder(self, rows: Int[np.ndarray, " M"]) -> SamplePlan:
        """Returns the plan with the same prompts in another order.

        Raises:
            InputError: if `rows` is not a permutation of the planned rows.
        """
        if fault := misplaced(rows, self.rows):
            raise InputError(
                f"an order must be a permutation of the planned rows, and this has {fault}; only a filter drops prompts"
            )
        return replace(self, rows=rows)

    def go_on(self, served: int, rest: Int[np.ndarray, " K"], dropped: Mapping[int, str] | None = None) -> SamplePlan:
        """Returns the plan with other rows after those that were handed out.

        Args:
            served: Number of rows that were handed out, which stay.
            rest: Rows to serve from now on, in their order.
            dropped: Reason for each row that is not served any more, although the plan had it; null for none.
        """
        return replace(
            self, rows=np.concatenate([self.rows[:served], rest]), dropped={**self.dropped, **(dropped or {})}
        )

    def ledger(self) -> dict[str, np.ndarray]:
        """Returns one column per property (fate, reason, cluster, …), with one entry per prompt of the pool."""
        pool = len(self.cluster)
        batch = self.batch_of()
        reason = np.full(pool, "", dtype=object)
        reason[batch == NOT_SERVED] = "left over: fills no whole batch"
        for row, why in self.dropped.items():
            reason[row] = why
        fate = np.where(batch != NOT_SERVED, "served", "not served").astype(object)
        fate[list(self.dropped)] = "dropped"
        return {
            "row": np.arange(pool),
            "fate": fate,
            "reason": reason,
            "cluster": self.cluster,
            "difficulty": self.difficulty,
            "quality": self.quality,
            "batch": batch,
            "mixed_from": self.mixed_from,
        }


def misplaced(rows: Int[np.ndarray, " K"], planned: Int[np.ndarray, " M"]) -> str:
    """Says why rows are no permutation of the planned ones, as in "row 3 2 times"; returns "" if they are one."""
    if np.array_equal(np.sort(rows), np.sort(planned)):
        return ""
    values, counts = np.unique(rows, return_counts=True)
    if (counts > 1).any():
        return f"row {values[counts > 1][0]} {counts[counts > 1][0]} times"
    if len(other := np.setdiff1d(values, planned)):
        return f"row {other[0]}, which is not planned"
    return f"no row {np.setdiff1d(planned, values)[0]}"


def require_even_shares(batch_size: int, world: int) -> None:
    """Refuses batches that the processes can't share evenly.

    Args:
        batch_size: Number of prompts of a step.
        world: Number of processes.

    Raises:
        InputError: with the numbers to write.
    """
    if batch_size % world:
        raise InputError(
            f"data.batch_size is {batch_size}, which {world} processes can't share evenly; write a multiple of {world}"
        )


def note_moves(before: SamplePlan, after: SamplePlan) -> SamplePlan:
    """Records in `mixed_from` the previous batch of each prompt whose batch changed."""
    old, new = before.batch_of(), after.batch_of()
    return replace(after, mixed_from=np.where(old != new, old, before.mixed_from))


def share_moved(before: SamplePlan, after: SamplePlan) -> float:
    """Computes the share of the served prompts whose batch changed; 0 if none is served."""
    served = before.batches().ravel()
    return float((before.batch_of() != after.batch_of())[served].mean()) if len(served) else 0.0
