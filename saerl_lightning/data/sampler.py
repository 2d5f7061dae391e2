"""Serves a plan batch by batch, from a start that survives a checkpoint. Knows no Lightning and no prompts' content.

The loader is a plain iterable and no torch `DataLoader`: the pool is in memory, so workers have nothing to do, a
DataLoader would draw from torch's global random state at every epoch (a resumed run would then differ from an
uninterrupted one), and Lightning may put a distributed sampler of its own into it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from saerl_lightning.errors import InputError
from saerl_lightning.records import PromptBatch


class PlanSampler:
    """Yields this rank's share of each batch of the plan, once from a start batch and from the first one afterwards.

    Its length is the whole epoch also where it starts later: Lightning counts the batches done before a checkpoint
    against it. Ranks take every world-th prompt of a batch, so that each gets easy and hard ones alike.

    Args:
        batches: pool rows of the global batches, (B, P).
        start: batch to begin with, in 0 .. B.
        rank: of this process.
        world: number of processes.

    Raises:
        InputError: if the ranks can't share a batch evenly.
    """

    def __init__(self, batches: Int[np.ndarray, "B P"], start: int = 0, rank: int = 0, world: int = 1) -> None:
        if batches.shape[1] % world:
            raise InputError(
                f"data.batch_size is {batches.shape[1]}, which {world} processes can't share evenly; "
                f"write a multiple of {world}"
            )
        self.batches = batches
        self.rank = rank
        self.world = world
        self.cursor = start  # batches trained in this epoch
        self._start = start

    def __len__(self) -> int:
        """Batches of a whole epoch (B)."""
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        """Takes the start with its first batch, for Lightning makes iterators that it never draws from."""
        self.cursor, self._start = self._start, 0
        for batch in self.batches[self.cursor :, self.rank :: self.world]:
            yield batch.tolist()

    def advance(self) -> None:
        """Counts one batch as trained, however many were fetched."""
        self.cursor += 1


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
        """Holds nothing: it tells Lightning that this loader resumes; the datamodule's state has the cursor.

        Lightning restores loaders too late for it: `trainer.estimated_stepping_batches` begins the epoch before.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes nothing back, see `state_dict`."""
