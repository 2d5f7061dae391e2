"""Serves a plan batch by batch, from a start that survives a checkpoint. Knows no Lightning and no prompts' content.

The loader is a plain iterable and no torch `DataLoader`: the pool is in memory, so workers have nothing to do, a
DataLoader would draw from torch's global random state at every epoch (a resumed run would then differ from an
uninterrupted one), and Lightning may put a distributed sampler of its own into it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from saerl_lightning.errors import InputError
from saerl_lightning.plan import SamplePlan
from saerl_lightning.records import PromptBatch


@dataclass(frozen=True)
class Progress:
    """How far training has come in an epoch."""

    batches: int = 0
    prompts: int = 0  # of the plan, from its first one on: those of the batches and those that steps took besides


EPOCH_START = Progress()


class PlanSampler:
    """Yields this rank's share of each batch of the plan, once from a start and from the first prompt afterwards.

    A step may take further prompts (`take_next`): the next batch begins behind them, and the epoch ends when no whole
    batch is left. What fills no batch at the plan's end is served as none, but a step may take it.

    Its length is the whole epoch also where it starts later or steps take more: Lightning counts the batches done
    before a checkpoint against it. Ranks take every world-th prompt of a batch, so that each gets easy and hard ones
    alike.

    Args:
        plan: the order of training.
        start: what is trained already.
        rank: of this process.
        world: number of processes.

    Raises:
        InputError: if the ranks can't share a batch evenly.
    """

    def __init__(self, plan: SamplePlan, start: Progress = EPOCH_START, rank: int = 0, world: int = 1) -> None:
        if plan.batch_size % world:
            raise InputError(
                f"data.batch_size is {plan.batch_size}, which {world} processes can't share evenly; "
                f"write a multiple of {world}"
            )
        self.plan = plan
        self.rank = rank
        self.world = world
        self._start = start
        self._trained = start
        self._drawn = start.prompts  # position in the plan behind what was handed out, trained or not
        self._untrained: deque[int] = deque()  # prompts of each batch that was handed out and is not trained yet
        self._over = False  # a batch was asked for, and there was none left

    def __len__(self) -> int:
        """Batches of a whole epoch in which no step takes more (B)."""
        return len(self.plan.rows) // self.plan.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        """Takes the start with its first batch, for Lightning makes iterators that it never draws from."""
        self._trained, self._start = self._start, EPOCH_START
        self._drawn, self._untrained, self._over = self._trained.prompts, deque(), False
        while len(self.plan.rows) - self._drawn >= self.plan.batch_size:
            batch = self._draw(self.plan.batch_size)
            self._untrained.append(len(batch))
            yield batch[self.rank :: self.world].tolist()
        self._over = True

    @property
    def progress(self) -> Progress:
        """What is trained of the epoch; nothing, once it is over."""
        return EPOCH_START if self._over and not self._untrained else self._trained

    @property
    def cut_short_at(self) -> int | None:
        """Batches of the epoch, once its last one is trained, if steps that took more made them fewer than B."""
        ended = len(self.plan.rows) - self._trained.prompts < self.plan.batch_size
        return self._trained.batches if ended and self._trained.batches < len(self) else None

    def advance(self) -> None:
        """Counts one batch as trained, with what its step took besides, however many were fetched."""
        prompts = self._trained.prompts + self._untrained.popleft()
        self._trained = Progress(self._trained.batches + 1, prompts)

    def take_next(self, counts: Sequence[int]) -> list[int]:
        """Hands the step in hand this rank's share of the plan's next prompts, as many as are left.

        All ranks must call it with the same list, so that they stay at one place.

        Args:
            counts: how many prompts each rank asks for; they are handed out in the ranks' order.

        Raises:
            RuntimeError: if not exactly one batch is in hand: after a look ahead the next prompts are a batch's.
        """
        if len(self._untrained) != 1:
            raise RuntimeError(
                f"{len(self._untrained)} batches are fetched and not trained; a step can take the plan's next prompts "
                "only while its own batch is the only one"
            )
        taken = self._draw(sum(counts))
        self._untrained[0] += len(taken)
        before = sum(counts[: self.rank])
        return taken[before : before + counts[self.rank]].tolist()

    def _draw(self, count: int) -> Int[np.ndarray, " n"]:
        rows = self.plan.rows[self._drawn : self._drawn + count]
        self._drawn += len(rows)
        return rows


class PromptLoader:
    """Turns lists of pool rows into prompt batches.

    Args:
        batches: lists of pool rows, sized and iterable again each epoch.
        collate: makes a batch of one list of rows.
    """

    def __init__(self, batches: PlanSampler | Sequence[list[int]], collate: Callable[[Iterable[int]], PromptBatch]):
        self.batches = batches
        self.collate = collate

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return len(self.batches)

    def __iter__(self) -> Iterator[PromptBatch]:
        """Collates batch by batch."""
        return map(self.collate, iter(self.batches))

    def state_dict(self) -> dict[str, Any]:
        """Holds nothing: it tells Lightning that this loader resumes; the datamodule's state has the progress.

        Lightning restores loaders too late for it: `trainer.estimated_stepping_batches` begins the epoch before.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes nothing back, see `state_dict`."""
