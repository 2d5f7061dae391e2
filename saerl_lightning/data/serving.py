"""The training pool: its plan, its sampler, and the progress of training."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from saerl_lightning.data.planning import plan_digest
from saerl_lightning.data.prompt_pool import PromptPool
from saerl_lightning.data.resuming.other_plan import OtherPlan
from saerl_lightning.errors import InputError
from saerl_lightning.plan import SamplePlan, require_even_shares
from saerl_lightning.records import PromptBatch


@dataclass(frozen=True)
class Progress:
    """The progress of training in an epoch."""

    batches: int = 0
    prompts: int = 0  # planned prompts used so far, by batches and by steps that took more


EPOCH_START = Progress()
NO_ROWS = np.zeros(0, dtype=np.int64)
Revise = Callable[[Int[np.ndarray, " S"]], SamplePlan]


class PlanSampler:
    """Yields this rank's share of each batch of the plan, first from the given progress, later from the first prompt.

    A step may take further prompts (`take_next`). The next batch then starts after them, and the epoch ends when no
    whole batch is left. Prompts at the end that fill no batch are not served, but a step may take them. A step may
    also look at the next batch before its turn (`draw_ahead`), which settles its prompts.

    Its length is always the whole epoch, because Lightning counts the batches done before a checkpoint against it. Each
    rank takes every world-th prompt of a batch, so that all ranks get easy and hard prompts.

    With `revise`, the plan is arranged anew before every batch. An epoch may then end early, if prompts are dropped.

    Args:
        plan: Plan with the order of training.
        start: Progress of training so far.
        rank: Rank of this process.
        world: Number of processes.
        revise: Function that returns the plan for the rest of the epoch, given the rows that were handed out in it;
            null keeps the plan.
        frozen: Rows that were handed out in this epoch before the start, in their order. They are not arranged anew.

    Raises:
        InputError: if the batch size is not a multiple of the number of processes.
    """

    def __init__(
        self,
        plan: SamplePlan,
        start: Progress = EPOCH_START,
        rank: int = 0,
        world: int = 1,
        revise: Revise | None = None,
        frozen: Int[np.ndarray, " S"] = NO_ROWS,
    ) -> None:
        require_even_shares(plan.batch_size, world)
        self.plan = plan
        self.rank = rank
        self.world = world
        self._batches = len(plan.rows) // plan.batch_size
        self._revise = revise
        self._frozen = frozen
        self._settled = NO_ROWS  # rows of the running epoch that were handed out before the start
        self._start = start
        self._trained = start
        self._handed_out = start.prompts  # position in the plan after the prompts handed out, trained or not
        self._untrained: deque[int] = deque()  # number of prompts of each batch handed out and not yet trained
        self._ahead: Int[np.ndarray, " P"] | None = None  # batch that was handed out before its turn
        self._over = False  # whether a batch was requested when none was left

    def __len__(self) -> int:
        """Returns the number of batches (B) of an epoch in which no step takes further prompts."""
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        """Iterates over batches. The start is used with the first batch, because Lightning makes iterators it never uses."""
        self._trained, self._start = self._start, EPOCH_START
        self._settled, self._frozen = self._frozen, NO_ROWS
        self._handed_out, self._untrained, self._over = self._trained.prompts, deque(), False
        self._ahead = None
        while (batch := self._batch() if self._ahead is None else self._ahead) is not None:
            self._ahead = None
            yield self._share(batch)
        self._over = True

    def draw_ahead(self) -> list[int] | None:
        """Hands out the next batch before its turn and returns this rank's share; None if no whole batch is left.

        The iteration yields the same batch next. All ranks must call this together.
        """
        if self._ahead is None:
            self._ahead = self._batch()
        return None if self._ahead is None else self._share(self._ahead)

    def _share(self, batch: Int[np.ndarray, " P"]) -> list[int]:
        return batch[self.rank :: self.world].tolist()

    def _batch(self) -> Int[np.ndarray, " P"] | None:
        if self._left() < self.plan.batch_size:
            return None
        batch = self._hand_out(self.plan.batch_size)
        self._untrained.append(len(batch))
        return batch

    def places(self, count: int) -> range:
        """Places of this rank's prompts in the batch of all ranks, given their number."""
        return range(self.rank, self.rank + count * self.world, self.world)

    @property
    def progress(self) -> Progress:
        """The progress in this epoch; zero once the epoch is over."""
        return EPOCH_START if self._over and not self._untrained else self._trained

    @property
    def cut_short_at(self) -> int | None:
        """Number of batches of a finished epoch, if steps that took more prompts made it shorter than B; else None."""
        ended = len(self.plan.rows) - self._trained.prompts < self.plan.batch_size
        return self._trained.batches if ended and self._trained.batches < len(self) else None

    def advance(self) -> None:
        """Counts one batch as trained, with the prompts its step took. Batches that were only prefetched don't count."""
        prompts = self._trained.prompts + self._untrained.popleft()
        self._trained = Progress(self._trained.batches + 1, prompts)

    def take_next(self, counts: Sequence[int]) -> list[int]:
        """Takes the plan's next prompts into the current step, as many as are left, and returns this rank's share.

        All ranks must call this with the same list, so that their positions stay equal.

        Args:
            counts: Number of prompts that each rank requests. Lower ranks are served first.

        Raises:
            RuntimeError: unless exactly one batch is in progress, because a prefetched batch would already contain the
                next prompts.
        """
        if len(self._untrained) != 1:
            raise RuntimeError(
                f"{len(self._untrained)} batches are fetched and not trained; a step can take the plan's next prompts "
                "only while its own batch is the only one"
            )
        taken = self._hand_out(sum(counts))
        self._untrained[0] += len(taken)
        before = sum(counts[: self.rank])
        return taken[before : before + counts[self.rank]].tolist()

    def _left(self) -> int:
        """Arranges what is left of the epoch, if that is to be decided now, and returns the number of prompts left."""
        if self._revise is not None:
            known = self._settled if self._handed_out <= len(self._settled) else self.handed_out
            self.plan = self._revise(known)
        return len(self.plan.rows) - self._handed_out

    @property
    def handed_out(self) -> Int[np.ndarray, " S"]:
        """Pool rows that were handed out in this epoch, trained or not, in their order; none once it is over."""
        over = self._over and not self._untrained
        return NO_ROWS if over else self.plan.rows[: self._handed_out]

    def _hand_out(self, count: int) -> Int[np.ndarray, " n"]:
        rows = self.plan.rows[self._handed_out : self._handed_out + count]
        self._handed_out += len(rows)
        return rows


class PromptLoader:
    """Turns lists of pool rows into prompt batches.

    Args:
        batches: Lists of pool rows, sized, and iterable in each epoch.
        collate: Function that makes a batch from a list of rows.
    """

    def __init__(self, batches: PlanSampler | Sequence[list[int]], collate: Callable[[list[int]], PromptBatch]):
        self.batches = batches
        self.collate = collate

    def __len__(self) -> int:
        """Returns the number of batches of a whole epoch."""
        return len(self.batches)

    def __iter__(self) -> Iterator[PromptBatch]:
        """Yields one prompt batch per list of rows."""
        return map(self.collate, iter(self.batches))

    def state_dict(self) -> dict[str, Any]:
        """Returns an empty state, which tells Lightning that the loader can resume. The datamodule saves the progress.

        Lightning restores loaders too late for this: `trainer.estimated_stepping_batches` starts the epoch earlier.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Ignores the state, see `state_dict`."""


class PlannedPool:
    """A pool with its plan and the progress of training, which a checkpoint stores to resume at the next prompt.

    Args:
        pool: Pool that the plan's rows refer to.
        plan: Plan with the order of training.
        revise: Function that arranges the plan anew while it is served, as for `PlanSampler`; null for none.
    """

    def __init__(self, pool: PromptPool, plan: SamplePlan, revise: Revise | None = None) -> None:
        self.pool = pool
        self.plan = plan
        self.revise = revise
        self.digest = plan_digest(plan, pool.prompts)
        self._sampler: PlanSampler | None = None
        self._start = EPOCH_START  # where the next loader starts
        self._frozen = NO_ROWS  # rows of its epoch that were handed out before

    def loader(self, rank: int, world: int) -> PromptLoader:
        """Serves a process's share of the plan, from the checkpoint's position in the first epoch."""
        sampler = PlanSampler(self.plan, self._start, rank, world, self.revise, self._frozen)
        self._sampler, self._start, self._frozen = sampler, EPOCH_START, NO_ROWS
        return PromptLoader(sampler, lambda rows: self.pool.batch(rows, sampler.places(len(rows))))

    @property
    def sampler(self) -> PlanSampler:
        """The sampler that serves the plan.

        Raises:
            InputError: if there is none yet.
        """
        if self._sampler is None:
            raise InputError("the plan is not served yet: call trainer.fit(module, data), or data.train_dataloader()")
        return self._sampler

    @property
    def progress(self) -> Progress:
        """The progress in this epoch."""
        return self._start if self._sampler is None else self._sampler.progress

    @property
    def cut_short(self) -> bool:
        """Whether this epoch ended before its last batch, because steps took further prompts."""
        return self._sampler is not None and self._sampler.cut_short_at is not None

    def draw_ahead(self) -> PromptBatch | None:
        """Hands out the next batch before its turn, and returns this rank's share; None if no whole batch is left."""
        rows = self.sampler.draw_ahead()
        return None if rows is None else self.pool.batch(rows, self.sampler.places(len(rows)))

    def take_next(self, counts: Sequence[int]) -> PromptBatch | None:
        """Returns this rank's share of the plan's next prompts for the current step; None if it gets none."""
        rows = self.sampler.take_next(counts)
        first = sum(counts[: self.sampler.rank])
        return self.pool.batch(rows, range(first, first + len(rows))) if rows else None

    def state_dict(self, batches: float) -> dict[str, Any]:
        """Returns the progress and a digest of the plan. `batches` is the trainer's number of batches per epoch."""
        over = self.cut_short or not self.progress.batches % batches
        done = EPOCH_START if over else self.progress
        state = {"served": done.prompts, "batches": done.batches, "plan": self.digest}
        if self.revise is not None:
            rows = self._frozen if self._sampler is None else self._sampler.handed_out
            state["handed_out"] = torch.from_numpy(NO_ROWS if over else rows.copy())
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues at the checkpoint's position.

        Raises:
            InputError: if the checkpoint was made with another plan.
        """
        if state["plan"] != self.digest:
            raise OtherPlan(
                f"the checkpoint's training plan is {state['plan']}, this run's is {self.digest}",
                "data.train, batch_size, shuffle_seed or an operation differs; give those of the checkpoint's config.yaml",
            )
        if (self.revise is None) != ("handed_out" not in state):
            made, now = ("with", "without") if self.revise is None else ("without", "with")
            raise OtherPlan(
                f"the checkpoint's plan was arranged {made} data.online, this run's is {now} it",
                "give data.online as the checkpoint's config.yaml has it",
            )
        if "cursor" in state:  # in batches, from a version whose steps took no further prompts
            state = {"served": state["cursor"] * self.plan.batch_size, "batches": state["cursor"]}
        self._start, self._sampler = Progress(state["batches"], state["served"]), None
        if self.revise is not None:
            self._frozen = state["handed_out"].numpy()
