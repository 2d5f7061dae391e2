"""Pools of prompts with their token ids, and the pool that is trained on: its plan, and how far training has come."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int
from lightning.pytorch.utilities import rank_zero_info

from saerl_lightning.data.planning import plan_digest
from saerl_lightning.errors import InputError
from saerl_lightning.plan import SamplePlan
from saerl_lightning.prompts.chat import ChatTemplate
from saerl_lightning.prompts.file import FilePrompts
from saerl_lightning.prompts.labels import read_labels, with_labels
from saerl_lightning.prompts.source import PromptSource
from saerl_lightning.records import Prompt, PromptBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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


@dataclass(frozen=True)
class PromptPool:
    """N prompts, their token ids, and why some can't be served."""

    prompts: list[Prompt]  # N
    ids: list[list[int]]  # N
    too_long: dict[int, str]  # pool row -> reason

    @classmethod
    def read(
        cls,
        name: str,
        source: str | PromptSource,
        chat: ChatTemplate,
        tokenizer: PreTrainedTokenizerBase,
        limit: int | None = None,
    ) -> PromptPool:
        """Loads a source, or the file at a path, encodes its first `limit` prompts, and says how many are too long."""
        prompts = read_prompts(source)[:limit]
        ids = chat.encode(prompts, tokenizer)
        pool = cls(prompts, ids, chat.too_long(ids))
        if pool.too_long:
            rank_zero_info(f"{name}: {len(pool.too_long)} of {len(prompts)} prompts are too long and dropped")
        return pool

    def labelled(self, file: str | None) -> PromptPool:
        """The pool with the labels that stand in a file; None leaves it as it is."""
        return self if file is None else replace(self, prompts=with_labels(self.prompts, read_labels(file), file))

    def batch(self, rows: Iterable[int]) -> PromptBatch:
        """Collates the prompts at the given rows."""
        members = list(rows)
        return PromptBatch([self.prompts[r] for r in members], [self.ids[r] for r in members], members)

    def servable(self) -> list[int]:
        """Rows that are not too long, in order."""
        return [row for row in range(len(self.prompts)) if row not in self.too_long]

    def without(self, texts: Set[str]) -> PromptPool:
        """The pool without the prompts that have one of these normalised texts."""
        kept = [row for row, prompt in enumerate(self.prompts) if prompt.normalised_text not in texts]
        place = {row: i for i, row in enumerate(kept)}
        too_long = {place[row]: why for row, why in self.too_long.items() if row in place}
        return PromptPool([self.prompts[row] for row in kept], [self.ids[row] for row in kept], too_long)


class PlannedPool:
    """A pool, its plan, and how far training is in it: what a checkpoint names so that the very next prompt comes next.

    Args:
        pool: that the plan's rows are positions in.
        plan: the order of training.
    """

    def __init__(self, pool: PromptPool, plan: SamplePlan) -> None:
        self.pool = pool
        self.plan = plan
        self.digest = plan_digest(plan, pool.prompts)
        self._sampler: PlanSampler | None = None
        self._start = EPOCH_START  # what the next loader begins behind

    def loader(self, rank: int, world: int) -> PromptLoader:
        """Serves a process's share of the plan, on the first pass from where the checkpoint stopped."""
        self._sampler = PlanSampler(self.plan, self._start, rank, world)
        self._start = EPOCH_START
        return PromptLoader(self._sampler, self.pool.batch)

    @property
    def sampler(self) -> PlanSampler:
        """What serves the plan."""
        assert self._sampler is not None, "train_dataloader() comes first"
        return self._sampler

    @property
    def progress(self) -> Progress:
        """What is trained of this epoch."""
        return self._start if self._sampler is None else self._sampler.progress

    @property
    def cut_short(self) -> bool:
        """Whether this epoch is over before its last batch, for steps took more prompts than their batch."""
        return self._sampler is not None and self._sampler.cut_short_at is not None

    def take_next(self, counts: Sequence[int]) -> PromptBatch | None:
        """This rank's share of the plan's next prompts for the step in hand; None where it gets none."""
        rows = self.sampler.take_next(counts)
        return self.pool.batch(rows) if rows else None

    def state_dict(self, batches: float) -> dict[str, Any]:
        """Holds the progress and a digest of the plan; `batches` are an epoch's, which a trainer may cut short."""
        over = self.cut_short or not self.progress.batches % batches
        done = EPOCH_START if over else self.progress
        return {"served": done.prompts, "batches": done.batches, "plan": self.digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the checkpoint stopped.

        Raises:
            InputError: if the checkpoint served another plan.
        """
        if state["plan"] != self.digest:
            raise InputError(
                f"the checkpoint's training plan is {state['plan']}, this run's is {self.digest}: data.train, "
                "batch_size, shuffle_seed or an operation differs; give those of the checkpoint's config.yaml, or "
                "start a new run from its weights without --ckpt_path"
            )
        if "cursor" in state:  # batches, of a version whose steps took their batch and no more
            state = {"served": state["cursor"] * self.plan.batch_size, "batches": state["cursor"]}
        self._start, self._sampler = Progress(state["batches"], state["served"]), None


def read_prompts(source: str | PromptSource) -> list[Prompt]:
    """Loads a source, or the file at a path."""
    return (FilePrompts(source) if isinstance(source, str) else source).load()
