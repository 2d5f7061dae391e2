"""Pools of prompts with their token ids, and the pool that is trained on: its plan, and how far training has come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from lightning.pytorch.utilities import rank_zero_info

from saerl_lightning.data.planning import plan_digest
from saerl_lightning.data.sampler import EPOCH_START, PlanSampler, Progress, PromptLoader
from saerl_lightning.errors import InputError, RunStopped
from saerl_lightning.plan import SamplePlan
from saerl_lightning.prompts.chat import ChatTemplate
from saerl_lightning.prompts.file import FilePrompts
from saerl_lightning.prompts.labels import read_labels, with_labels
from saerl_lightning.prompts.source import PromptSource
from saerl_lightning.records import Prompt, PromptBatch

if TYPE_CHECKING:
    import lightning
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")


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


def made_once(trainer: lightning.Trainer | None, make: Callable[[], T]) -> T:
    """Makes something on the first process and hands it to all; without a trainer it is simply made.

    The others wait as long as the process group lets them (10 minutes with NCCL, 30 with gloo): where features of many
    prompts are still to be computed, fill their cache with `main.py plan` before.

    Raises:
        InputError: on every process, if the first one raised it.
        RunStopped: on the other processes, if the first one failed in another way; that one raises what it met.
    """
    if trainer is None:
        return make()
    made: list[T] = []
    failure: Exception | None = None
    met: Exception | None = None
    if trainer.is_global_zero:
        try:
            made.append(make())
        except InputError as error:
            failure = error
        except Exception as error:
            met, failure = error, RunStopped(f"the first process failed: {error!r}", everywhere=True)
    made, failure = trainer.strategy.broadcast((made, failure))  # also what failed: the others wait for it
    if failure is not None:
        raise met or failure
    return made[0]
