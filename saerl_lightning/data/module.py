"""PromptDataModule: reads the prompts, has the operations plan their order, and serves the plan.

The operations are applied in a fixed order: filtering, clustering, curriculum, mixing, online, extra. Evaluation sets
are handled in the base class.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from saerl_lightning.data.callback import Clustering, Curriculum, DataCallback, Filtering, Mixing, Online
from saerl_lightning.data.planning import (
    SLOTS,
    Planner,
    doubtful_slots,
    idle_slots,
    in_slots,
    made_once,
)
from saerl_lightning.data.prompt_pool import PromptPool
from saerl_lightning.data.resuming.position import ResumePoint
from saerl_lightning.data.revision import revise, revising
from saerl_lightning.data.serving import PlannedPool, PromptLoader
from saerl_lightning.data.validation import EvaluationDataModule, EvaluationPool, ValidationSet, require_set_names
from saerl_lightning.errors import InputError
from saerl_lightning.plan import SamplePlan
from saerl_lightning.prompts.chat import ChatTemplate
from saerl_lightning.prompts.mixture import Part, open_prompts
from saerl_lightning.prompts.source import ProbeReference, PromptSource
from saerl_lightning.ranges import Count, Seed, require_in_range
from saerl_lightning.ranks.collectives import agreed
from saerl_lightning.records import Outcomes, PromptBatch, Sampling
from saerl_lightning.signals.cache import cached
from saerl_lightning.signals.source import Features, SignalSource

log = logging.getLogger(__name__)

PLAIN_CHAT = ChatTemplate()
FOUR_SAMPLES = Sampling(group_size=4)


class PromptDataModule(EvaluationDataModule):
    """Serves prompts in the order that the configured operations planned.

    Args:
        train: Training prompts: path of a file or folder, name on the hub, mixture of such by name, or prompt source; null
            for none, if a model is only evaluated.
        val: Named validation sets: each a path, a prompt source, or a set with its own sampling. Questions whose text
            is also in `train` are dropped, with a message.
        test: Named sets for `test` and `predict`; null uses those of `val`.
        batch_size: Number of prompts per step (P), over all processes.
        chat: System message and maximum length of the prompts.
        signals: Signal source that computes the feature rows for operations; null for none.
        signal_cache: Folder where feature rows are cached while they are computed; null for no cache.
        filtering: Operation that drops prompts; null for none.
        clustering: Operation that groups prompts into batches of one cluster each; null for none.
        curriculum: Operation that orders prompts from easy to hard; null for none.
        mixing: Operation that exchanges prompts between neighbouring batches; null for none.
        online: Operation that goes on choosing the next prompts while training runs; null for none.
        extra: Further operations, applied after the others.
        shuffle_seed: Seed of the initial shuffling, before the operations; null keeps the source's order.
        val_sampling: Sampling for evaluation sets without their own.
        val_batch_size: Number of prompts per validation batch, on each process.
        labels: File of measured labels, written by `label`, which are added to the training prompts; null for none.
        reference: Source of prompts that only probes learn from, and that are never served; null for none.
        columns: Column of each prompt field in `train` and in sets that are paths, where rows are not recognised or
            others are wanted, such as {prompt: question, answer: meta.final_answer}; null maps none.

    Raises:
        InputError: if a number is out of range, a part does not fit, or the name of a set can't be part of a metric's name.
    """

    def __init__(
        self,
        # A text is never taken for a class's path, because it is tried first.
        train: str | PromptSource | dict[str, str | Part | PromptSource] | None = None,
        val: dict[str, str | ValidationSet | PromptSource] | None = None,
        test: dict[str, str | ValidationSet | PromptSource] | None = None,
        batch_size: Count = 8,
        chat: ChatTemplate = PLAIN_CHAT,
        signals: SignalSource | None = None,
        signal_cache: str | None = None,
        filtering: Filtering | None = None,
        clustering: Clustering | None = None,
        curriculum: Curriculum | None = None,
        mixing: Mixing | None = None,
        online: Online | None = None,
        extra: list[DataCallback] | None = None,
        shuffle_seed: Seed | None = 0,
        val_sampling: Sampling = FOUR_SAMPLES,
        val_batch_size: Count = 32,
        labels: str | None = None,
        reference: ProbeReference | None = None,
        columns: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.train = train
        self.val = val or {}
        self.test = test or self.val
        require_set_names([*self.val, *self.test])
        self.batch_size = batch_size
        self.chat = chat
        self.signals = signals
        self.signal_cache = signal_cache
        slots = dict(zip(SLOTS, (filtering, clustering, curriculum, mixing, online), strict=True))
        self.operations = in_slots(type(self).__name__, slots, extra)
        self.shuffle_seed = shuffle_seed
        self.val_sampling = val_sampling
        self.val_batch_size = val_batch_size
        self.labels = labels
        self.reference = reference
        self.columns = columns
        self.tokenizer = None  # set it before `setup` if there is no trainer
        self.keep_features = False  # set it before `setup` to have `features` afterwards
        self.features: Features | None = None  # (N, F) of the pool, on the first process
        self.resume = ResumePoint()
        self.plan_seconds = 0.0  # duration of planning: features that were not cached, probes, clusters
        self._pool: PromptPool | None = None
        self._planned: PlannedPool | None = None
        self._val_pools: list[EvaluationPool] = []
        self._test_pools: list[EvaluationPool] = []
        require_in_range(self)

    def __setattr__(self, name: str, value: object) -> None:
        """Refuses changes that would have no effect: of a slot, and of settings after prompts were read with them.

        Raises:
            InputError: naming the argument of the constructor.
        """
        read = vars(self).get("_pool") or vars(self).get("_val_pools") or vars(self).get("_test_pools")
        if name in (*SLOTS, "extra") or (read and name in inspect.signature(PromptDataModule.__init__).parameters):
            raise InputError(f"data.{name} would have no effect now; make a new PromptDataModule(…, {name}=…)")
        super().__setattr__(name, value)

    @property
    def pool(self) -> PromptPool:
        """The training prompts with their token ids, in the source's order. Read at the first access.

        Raises:
            InputError: if there are none.
        """
        if self._pool is None:
            if self.train is None:
                raise InputError("data.train is null; name the prompts to train on, as --data.train FILE")
            pool = PromptPool.read(
                "data.train", open_prompts(self.train, self.columns), self.chat, self.find_tokenizer()
            )
            self._pool = pool.labelled(self.labels)
        return self._pool

    @property
    def planned(self) -> PlannedPool:
        """The pool with its plan and the progress of training.

        Raises:
            InputError: if there is no plan yet.
        """
        if self._planned is None:
            raise InputError(
                "there is no plan yet: trainer.fit(module, data) makes it; without a trainer, set data.tokenizer = "
                "policy.load_tokenizer(), and call data.set_up_plan()"
            )
        return self._planned

    @property
    def plan(self) -> SamplePlan:
        """The order of training, with the reason why each prompt is served or not."""
        return self.planned.plan

    def setup(self, stage: str | None = None) -> None:
        """Reads what the stage needs and was not read before; None reads everything.

        Raises:
            InputError: if a source can't be read, an operation's input is missing, or too few prompts are left.
        """
        with agreed():  # a file may be missing on one machine
            if stage in (None, "fit", "validate") and not self._val_pools:
                self._val_pools = self._unseen(self.read_sets(self.val))
            if stage in (None, "test") and not self._test_pools:
                self._test_pools = self._unseen(self.read_sets(self.test))
            if stage == "predict" and not self._test_pools:
                self._test_pools = self.read_sets(self.test)  # `predict` answers all prompts, also those trained on
        if stage in (None, "fit") and self._planned is None:
            self.set_up_plan()
        if stage == "fit" and self.trainer is not None and not self.val:
            # Lightning would take an empty list of loaders for one empty loader.
            self.trainer.limit_val_batches = 0

    def _unseen(self, sets: list[EvaluationPool]) -> list[EvaluationPool]:
        """Removes questions that are trained on, so that `validate` and `test` use the same questions as `fit`."""
        if self.train is None or all(each.keep_trained for each in sets):
            return sets
        fitting = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        try:
            prompts = self.pool.prompts if fitting else open_prompts(self.train, self.columns).load()
        except InputError as error:
            if fitting:
                raise
            rank_zero_warn(f"which questions are trained on is not known, so none is dropped: {error}")
            return sets
        trained = {prompt.normalised_text for prompt in prompts}
        return [each.unseen(trained) for each in sets]

    def set_up_plan(self) -> None:
        """Reads the training prompts and makes the plan, without evaluation sets. `setup` calls it.

        With several processes, the first one plans, and sends its plan and operations to the others.

        Raises:
            InputError: on every process, if an operation's input is missing, or too few prompts are left.
        """
        with agreed():
            pool, began = self.pool, time.perf_counter()
        self._tell_group_size()
        plan, self.operations = made_once(self.trainer, lambda: (self._plan(pool), self.operations))
        self._planned = PlannedPool(pool, plan, self._revise if revising(self.operations) else None)
        self.plan_seconds = time.perf_counter() - began

    def _tell_group_size(self) -> None:
        """Tells online operations how many completions a prompt gets, if a module says so."""
        sampling = None if self.trainer is None else getattr(self.trainer.lightning_module, "sampling", None)
        for operation in self.operations.values():
            if sampling is not None and isinstance(operation, Online):
                operation.group_size = sampling.group_size

    def _revise(self, handed_out: Int[np.ndarray, " S"]) -> SamplePlan:
        """Has the operations arrange the rest of the epoch, on the first process for all."""

        def arranged() -> tuple[Int[np.ndarray, " M"], Mapping[int, str]]:
            plan = revise(revising(self.operations), self.plan, handed_out)
            return plan.rows, plan.dropped

        rows, dropped = made_once(self.trainer, arranged)
        return replace(self.plan, rows=rows, dropped=dropped)

    def _plan(self, pool: PromptPool) -> SamplePlan:
        signals = self.signals
        if signals is not None and self.signal_cache is not None:
            signals = cached(signals, self.signal_cache)
        planner = Planner(self.batch_size, self.shuffle_seed, signals, self.operations, self.reference)
        plan, features = planner.plan(pool.prompts, pool.too_long)
        for slot, why in [*idle_slots(self.operations).items(), *doubtful_slots(self.operations).items()]:
            log.warning(f"warning: data.{slot}: {why}")
        if self.keep_features and features is not None:
            self.features = features[: len(pool.prompts)]
        return plan

    def train_dataloader(self) -> PromptLoader:
        """Serves this process's share of the plan, from the checkpoint's position in the first epoch."""
        return self.planned.loader(*self.place)

    def transfer_batch_to_device(self, batch: PromptBatch, device: Any, dataloader_idx: int) -> PromptBatch:
        """Returns the batch unchanged, because it contains no tensors."""
        return batch

    def next_prompts(self, counts: Sequence[int]) -> PromptBatch | None:
        """Takes the plan's next prompts into the current step, also those that fill no whole batch.

        The next batch starts after them, and `advance` counts them with the step. All processes must call this with the
        same list. At the end of the plan, the first processes are served first.

        Args:
            counts: Number of prompts that each process requests.

        Returns:
            This process's share; None if it gets no prompt.
        """
        return self.planned.take_next(counts)

    def draw_ahead(self) -> PromptBatch | None:
        """Settles the epoch's next batch before its turn, so that it can be sampled while the present one is trained.

        Operations that arrange the plan while training runs therefore decide on it one step earlier. All processes must
        call this together.

        Returns:
            This process's share; None if no whole batch is left in the epoch.
        """
        return self.planned.draw_ahead()

    def advance(self) -> None:
        """Counts one batch as trained, with the prompts that its step took in addition.

        `observe` calls this. Modules without outcomes call it directly.
        """
        self.planned.sampler.advance()
        self._validate_at_the_end()

    def _validate_at_the_end(self) -> None:
        """Runs a validation that is due at a share of the epoch (1.0 is its end) also if the epoch ends early.

        Lightning counts this share of the epoch's full length. It notices an early end only when it asks for a batch
        and gets none, which is too late for the validation.
        """
        trainer = self.trainer
        if trainer is None or trainer.val_check_batch is None or not isinstance(trainer.val_check_interval, float):
            return
        share = max(1, int(trainer.num_training_batches * trainer.val_check_interval))
        trainer.val_check_batch = self.planned.sampler.cut_short_at or share

    def observe(self, outcomes: Outcomes) -> None:
        """Passes the rewards of a step to the operations, and counts its batch."""
        for operation in self.operations.values():
            operation.observe(outcomes)
        self.advance()

    def metrics(self) -> dict[str, float]:
        """Returns the operations' numbers, named `data/<slot>/<metric>`."""
        named = [(slot, operation.metrics()) for slot, operation in self.operations.items()]
        return {f"data/{slot}/{key}": value for slot, metrics in named for key, value in metrics.items()}

    def state_dict(self) -> dict[str, Any]:
        """Returns the progress, a digest of the plan, and the operations' states; {} before training is set up."""
        if self._planned is None:
            return {}
        batches = self.plan.batches().shape[0] if self.trainer is None else self.trainer.num_training_batches
        states = {slot: operation.state_dict() for slot, operation in self.operations.items()}
        place = self.resume.state(self.trainer, self.planned.cut_short)
        return {**self.planned.state_dict(batches), **place, "operations": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues at the checkpoint's position. `validate`, `test` and `predict` ignore it.

        Raises:
            InputError: if the checkpoint served another plan.
        """
        if self._planned is None or (self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING):
            return
        self.planned.load_state_dict(state_dict)
        self.resume.load(self.trainer, state_dict)
        for slot, operation in self.operations.items():
            operation.load_state_dict(state_dict["operations"].get(slot, {}))
