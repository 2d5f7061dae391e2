"""Canary: a few short completions by the sampler's present weights, for the guard."""

from __future__ import annotations

from concurrent.futures import Future, wait
from dataclasses import replace
from functools import partial

import torch

from saerl_lightning.records import PromptBatch, Rollouts, Sampling
from saerl_lightning.rollout.engine import RolloutEngine
from saerl_lightning.training.lookahead.thread import in_thread
from saerl_lightning.training.rows import StepRows

TOKENS = 8  # of a completion: a group of 8 gives the guard's mean over 64 tokens


class Canary:
    """Samples one group of short completions in a thread of its own, while the batch is trained.

    The batch itself was sampled by older weights, so the guard can't compare it with the policy. The canary's prompt is
    the batch's first: its prefix is what a sampler that did not clear its cache would still hold.
    """

    def __init__(self) -> None:
        self._rollouts: Future[Rollouts] | None = None  # until they are taken
        self._width = TOKENS

    def begin(self, engine: RolloutEngine, batch: PromptBatch, sampling: Sampling, seed: int) -> None:
        """Begins to sample.

        Args:
            engine: Engine that just got the policy's weights.
            batch: Batch that is trained.
            sampling: Sampling settings of the run.
            seed: Seed of the sampler.
        """
        short = replace(sampling, max_tokens=min(TOKENS, sampling.max_tokens)).placed(batch.places[:1], seed)
        self._width = short.max_tokens
        self._rollouts, _ = in_thread("canary", partial(engine.generate, batch.ids[:1], short))

    @property
    def busy(self) -> bool:
        """Whether it is being sampled."""
        return self._rollouts is not None and not self._rollouts.done()

    def wait(self) -> None:
        """Waits until it is sampled, whether that succeeded or not."""
        wait([] if self._rollouts is None else [self._rollouts])

    def rows(self, device: torch.device) -> StepRows:
        """Waits for the completions that were begun, and returns them as rows.

        Args:
            device: Device of the rows.

        Raises:
            Exception: the engine's own error.
        """
        assert self._rollouts is not None
        rollouts, self._rollouts = self._rollouts.result(), None
        all_of_them = torch.ones(len(rollouts.texts), dtype=torch.bool)
        return StepRows.from_rollouts(rollouts, all_of_them, self._width, device)
