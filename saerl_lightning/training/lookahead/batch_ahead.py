"""BatchAhead: the batch that a second thread samples and grades while the one before it is trained, and the canary."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from functools import partial

from saerl_lightning.errors import InputError, shown
from saerl_lightning.objective.objective import Objective
from saerl_lightning.records import PromptBatch
from saerl_lightning.reward.reward import Reward
from saerl_lightning.rollout.engine import RolloutEngine
from saerl_lightning.training.grading import GradedGroups
from saerl_lightning.training.lookahead.canary import Canary
from saerl_lightning.training.lookahead.thread import in_thread
from saerl_lightning.training.metrics import Phases
from saerl_lightning.training.rounds.rounds import Rounds

PATIENCE_S = 30.0  # for a second thread whose batch is not wanted any more

Graded = Callable[[PromptBatch, int, Phases], GradedGroups]


@dataclass(frozen=True)
class Begun:
    """A batch that was begun ahead of its step."""

    rows: list[int]  # pool rows of this rank's prompts
    steps: int  # optimiser steps before it is trained
    groups: Future[GradedGroups]


class BatchAhead:
    """Samples and grades one batch ahead, in a thread of its own, and holds each batch until its step is over.

    The thread calls no collective. What it raises is raised by `take`, in the batch's own step.
    """

    def __init__(self) -> None:
        self._begun: list[Begun] = []  # the batch of the present step, and the next
        self._thread: threading.Thread | None = None
        self.canary = Canary()

    def begin(self, batch: PromptBatch, steps: int, graded: Graded) -> None:
        """Begins with a batch in the second thread, which is idle.

        Args:
            batch: This rank's prompts.
            steps: Optimiser steps before the batch is trained.
            graded: Function that samples and grades a batch, given these two and a timer.
        """
        groups, self._thread = in_thread("ahead", partial(_timed, graded, batch, steps))
        self._begun.append(Begun(batch.rows, steps, groups))

    def hold(self, groups: GradedGroups, steps: int) -> None:
        """Holds a batch that another process sampled ahead.

        Args:
            groups: Graded groups of the batch.
            steps: Optimiser steps before the batch is trained.
        """
        sampled: Future[GradedGroups] = Future()
        sampled.set_result(groups)
        self._begun = [Begun(groups.batch.rows, steps, sampled)]

    @property
    def busy(self) -> bool:
        """Whether a batch or the canary is being sampled."""
        return self.canary.busy or any(not each.groups.done() for each in self._begun)

    def wait(self) -> None:
        """Waits until nothing is sampled, whether it succeeded or not."""
        self.canary.wait()
        wait([each.groups for each in self._begun])

    def take(self, batch: PromptBatch, steps: int) -> GradedGroups | None:
        """Returns a batch that was begun ahead, as soon as it is there; None if it was not.

        Args:
            batch: This rank's prompts.
            steps: Optimiser steps before the batch is trained.

        Raises:
            Exception: the error that ended the second thread.
        """
        self._begun = [each for each in self._begun if (each.rows, each.steps) == (batch.rows, steps)]
        return self._begun[0].groups.result() if self._begun else None

    def finished(self, steps: int) -> GradedGroups | None:
        """Waits, and returns the batch to train after that many optimiser steps; None if it failed or was not begun.

        Args:
            steps: Optimiser steps before the batch is trained.
        """
        self.wait()
        found = [each.groups for each in self._begun if each.steps == steps and each.groups.exception() is None]
        return found[0].result() if found else None

    def give_up(self, engine: RolloutEngine, rewards: Sequence[Reward]) -> None:
        """Forgets all batches; ends what the second thread waits for, and waits a little for it.

        Args:
            engine: Engine that samples, which is closed if the thread is at work.
            rewards: Rewards that grade.
        """
        if self.busy:
            for reward in rewards:
                reward.interrupt()
            engine.close()
        self._begun, thread, self._thread = [], self._thread, None
        if thread is not None:
            thread.join(PATIENCE_S)


def _timed(graded: Graded, batch: PromptBatch, steps: int) -> GradedGroups:
    """Samples and grades; the seconds are the batch's own."""
    phases = Phases(own_work=False)
    groups = graded(batch, steps, phases)
    return replace(groups, spent=groups.spent | phases.metrics())


def refuse_lookahead(engine: RolloutEngine, objective: Objective, dynamic_sampling: Rounds | None) -> None:
    """Refuses parts that can't sample one step ahead.

    Raises:
        InputError: naming the part and what to write instead.
    """
    if not engine.concurrent:
        raise InputError(
            f"model.lookahead is true, and {type(engine).__name__} can't sample while the policy is trained; write "
            "-c configs/engine/lookahead.yaml (ServerEngine: vLLM on devices of its own), or --model.lookahead false"
        )
    if not objective.corrects_sampler:
        raise InputError(
            "model.lookahead is true, and model.objective.correction is null; completions are one batch old when they are "
            "trained on, so write --model.objective.correction SamplerCorrection, or --model.lookahead false"
        )
    if dynamic_sampling is not None:
        raise InputError(
            f"model.lookahead is true, and model.dynamic_sampling is {shown(dynamic_sampling)}, which takes the plan's next "
            "prompts into a step when the next batch is sampled already; write --model.dynamic_sampling null, or "
            "--model.lookahead false"
        )
