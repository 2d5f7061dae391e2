"""GRPOModule: its settings (optimizer, lr_scheduler, warmup_steps …) and the training step, which reads as the algorithm.

Prompts come from the datamodule's plan, completions from the engine, grades from the rewards, the loss from the
objective.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import cast

import lightning
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info

from saerl_lightning.objective.keeping.keep import Keep
from saerl_lightning.objective.objective import Objective
from saerl_lightning.objective.reweighting.reweighting import Reweighting
from saerl_lightning.policy.lean_layers import make_lean
from saerl_lightning.policy.load import Policy
from saerl_lightning.policy.scoring import Scorer
from saerl_lightning.ranges import Count, CountFrom0, Positive, require_in_range
from saerl_lightning.ranks.collectives import agreed, gather_objects, gather_outcomes, gradient_sync, mean_over_ranks
from saerl_lightning.records import PromptBatch, Sampling
from saerl_lightning.reward.function import as_rewards
from saerl_lightning.reward.reward import Reward, require_distinct, weighted_sum
from saerl_lightning.rollout.engine import RolloutEngine
from saerl_lightning.training import choices
from saerl_lightning.training.arithmetic import BatchArithmetic, planned_batches
from saerl_lightning.training.grading import (
    GradedGroups,
    Reference,
    advantages_of,
    entropy_floor,
    equal_forwards,
    everywhere,
    require_grades,
    sample_and_grade,
    score_step,
)
from saerl_lightning.training.guard import MismatchGuard, refuse_truncated_support
from saerl_lightning.training.loggers import GRPO
from saerl_lightning.training.lookahead.batch_ahead import BatchAhead, refuse_lookahead
from saerl_lightning.training.lookahead.canary import Canary
from saerl_lightning.training.metrics import (
    Completions,
    MetricSum,
    Phases,
    averaged,
    refill_metrics,
    reward_costs,
    reward_parts,
    step_metrics,
)
from saerl_lightning.training.optimization import Gradients, require_makers
from saerl_lightning.training.policy_module import PolicyModule
from saerl_lightning.training.precision import refuse_adapter_dropout, score_as_sampled
from saerl_lightning.training.replay.replay import Replay
from saerl_lightning.training.rounds.dynamic_sampling import DynamicSampling
from saerl_lightning.training.rounds.rounds import Rounds, StepSource
from saerl_lightning.training.rows import Cut, StepRows
from saerl_lightning.training.shortcuts import Shortcuts


def adamw(params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW with a learning rate of 1e-6 and no weight decay, the usual setting for training all weights."""
    return torch.optim.AdamW(params, lr=1e-6, weight_decay=0.0, fused=True)


class GRPOModule(PolicyModule):
    """Trains a policy by group-relative policy optimisation (arXiv 2402.03300) or another objective.

    Args:
        policy: Policy to train.
        engine: Engine that samples the completions.
        rewards: Rewards that grade the completions; the first one also grades evaluation. In Python, a
            function will do.
        objective: Objective: turns rewards into advantages and log-probabilities into a loss.
        sampling: Sampling settings of the training completions.
        optimizer: Optimiser, built over the trained weights.
        lr_scheduler: Learning-rate schedule, advanced once an optimiser step; null keeps the rate constant.
        warmup_steps: Number of optimiser steps until the full learning rate.
        updates_per_batch: Number of optimiser steps on each sampled batch; 1 is on-policy.
        micro_tokens: Largest number of tokens (padding included) that go through the model at once; changes memory, not
            the gradient.
        dynamic_sampling: Decision how many completions of which prompts a step samples, by the results of its first ones
            or of earlier steps; `{max_rounds: 10}` is DynamicSampling. Null samples G completions of each prompt.
        shortcuts: Computations that a step skips because they do not change its gradient: `all`, `none`, or a list of
            shared_prefix, lean_layers, tiled_head, skip_zero_advantage, reuse_forward, sort_by_length, overlap_grading.
        max_grad_norm: Norm that gradients are scaled down to; null does not scale them.
        guard: Check that the sampler's log-probabilities are the policy's, which otherwise stops the run; null switches
            it off.
        lookahead: Whether the next batch is sampled and graded while the present one is trained, by weights that are then
            one batch old. Needs an engine with devices of its own (ServerEngine) and `objective.correction`.
        keep: Choice of the graded completions that are trained on; null trains on all of them.
        reweighting: Weights of completions or tokens in the gradient, with mean 1; null weighs all alike.
        replay: Training on groups of earlier steps beside those of the present one; null switches it off.
    """

    _step_names = GRPO

    def __init__(
        self,
        policy: Policy,
        engine: RolloutEngine,
        rewards: list[Reward],
        objective: Objective,
        sampling: Sampling = Sampling(),  # noqa: B008  # frozen
        optimizer: OptimizerCallable = adamw,
        lr_scheduler: LRSchedulerCallable | None = None,
        warmup_steps: CountFrom0 = 0,
        updates_per_batch: Count = 1,
        micro_tokens: Count = 16384,
        dynamic_sampling: DynamicSampling | Rounds | None = None,
        shortcuts: list[str] | str = "all",
        max_grad_norm: Positive | None = 1.0,
        guard: MismatchGuard | None = MismatchGuard(),  # noqa: B008  # frozen
        lookahead: bool = False,
        keep: Keep | None = None,
        reweighting: Reweighting | None = None,
        replay: Replay | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy = policy
        self.engine = engine
        self.rewards = as_rewards(f"{type(self).__name__}.rewards", rewards)
        self.objective = objective
        self.sampling = sampling
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.warmup_steps = warmup_steps
        self.updates_per_batch = updates_per_batch
        self.micro_tokens = micro_tokens
        self.dynamic_sampling = dynamic_sampling
        self.shortcuts = Shortcuts.of(shortcuts)
        self.max_grad_norm = max_grad_norm
        self.guard = guard
        self.lookahead = lookahead
        self.ahead = BatchAhead() if lookahead else None
        self.keep = keep
        self.reweighting = reweighting
        self.replay = replay
        self.phases = Phases()
        self.gradients = Gradients()
        self.last_step: GradedGroups | None = None
        require_makers(type(self).__name__, optimizer, lr_scheduler)
        require_in_range(self)
        refuse_adapter_dropout(policy)
        if lookahead:
            refuse_lookahead(engine, objective, dynamic_sampling)

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Samples and grades completions, then updates the policy."""
        with self.phases("sync"):
            self.sync()
        version = self.weight_version
        generated, trained = self.sample_and_grade(batch)
        if self.replay is not None:
            trained = self.replay.mix(trained, self.global_step, self.trainer.world_size)
        self.look_ahead(batch, batch_idx)
        step = self.step_rows(trained)
        updates: list[dict[str, float]] = []
        for update in range(self.updates_per_batch):
            sums, micro_batches, old = MetricSum(), step.micro_batches(self.cut), []
            forwards = equal_forwards(self.model, len(micro_batches))
            for number, rows in enumerate(step.parts(micro_batches, forwards), 1):
                with self.phases("forward"):
                    logprobs, entropy = self.scorer(self.model, rows.tokens, rows.completion, rows.prompts, rows.own)
                    inputs = rows.inputs(logprobs, entropy)
                    loss, terms = self.objective(inputs)
                with self.phases("backward"), gradient_sync(self.trainer, last=number == forwards):
                    self.manual_backward(loss)
                sums.add({**terms, "loss": loss, "policy/entropy": rows.mean(entropy)})
                old.append(inputs.old_logprobs)
            if step.old_logprobs is None:
                step = step.with_old(step.joined(micro_batches, old))
            self.check_sampler(step, update)
            numbers = sums.numbers()
            updates.append(numbers | self.descend(numbers["loss"], batch))
        self.wait_for_sampling()
        with self.phases("sync"):
            self.sync()
        self.observe(generated)
        self.report(generated, trained, step, averaged(updates), version)

    # -- the verbs of a step -------------------------------------------------------------------------------------------

    def sample_and_grade(self, batch: PromptBatch) -> tuple[GradedGroups, GradedGroups]:
        """Returns all groups that were generated, and those to train on: G completions a prompt, or as rounds decide."""
        if self.dynamic_sampling is None:
            first = cast("GradedGroups", self.sample(batch, 0, self.sampling.group_size))
            return first, first
        gather = partial(gather_objects, ranks=self.trainer.world_size)
        rates = partial(choices.predicted_rates, self.prompts.operations)
        again = self.prompts.pool.batch
        source = StepSource(self.sample, self.prompts.next_prompts, gather, rates, self.sampling.group_size, again)
        return self.dynamic_sampling.fill(batch, source)

    def sample(self, batch: PromptBatch | None, round: int, size: int) -> GradedGroups | None:
        """Completes prompts, if there are any, `size` times each, and grades the completions. Round 0 is the first.

        Raises:
            RunStopped: on every rank, if engine or graders fail on one, which raises its own error, or nothing of
                round 0 could be graded.
        """
        groups: GradedGroups | None = None
        with agreed():
            if batch is not None:
                groups = None if self.ahead is None else self.ahead.take(batch, self.global_step)
                groups = groups or self.graded(batch, self.global_step, self.phases, round, size)
        if round == 0 and groups is not None:
            require_grades(self.rewards, groups, self.trainer.world_size)
        return groups

    def graded(
        self, batch: PromptBatch, steps: int, phases: Phases, round: int = 0, size: int | None = None
    ) -> GradedGroups:
        """Completes and grades this rank's prompts, which are trained after that many optimiser steps."""
        seed, size = self.seed_at(steps) + 1_000_003 * round, size or self.sampling.group_size
        sampling = replace(self.sampling, group_size=size).placed(batch.places, seed)
        overlap = self.shortcuts.overlap_grading
        rollouts, rewards = sample_and_grade(self.engine, self.rewards, batch, sampling, phases, overlap)
        total = weighted_sum(self.rewards, rewards)
        rounds = [round] * len(batch.prompts)
        spent, parts = reward_costs(self.rewards), reward_parts(self.rewards)
        masked = self.objective.masks_truncated
        return GradedGroups(batch, rollouts, rewards, total, rounds, masked, spent=spent, parts=parts)

    def seed_at(self, steps: int) -> int:
        """Seed of the sampler after that many optimiser steps."""
        return self.sampling.seed + 7919 * steps

    def step_rows(self, sampled: GradedGroups) -> StepRows:
        """Builds the rows of the updates from the graded groups, with everything that the objective needs."""
        self.rest()
        batches = self.global_step // self.updates_per_batch
        sampled = sampled if self.keep is None else choices.kept_by_rewards(self.keep, sampled, batches)
        trained, joined = sampled.in_loss.flatten(), everywhere(self.trainer)
        width = self.sampling.max_tokens
        step = StepRows.from_rollouts(sampled.rollouts, trained, width, self.device, sampled.replayed)
        if self.objective.needs_reference:
            with self.phases("reference"):
                step = step.with_reference(self._reference[0].logprobs(self.scorer, step, self.cut))
        stale = self.ahead is not None and choices.weighs_tokens(self.reweighting)
        if stale or self.objective.top_entropy < 1 or not self.shortcuts.reuse_forward:
            with self.phases("old"):
                step = self._with_old(step)
        advantages = advantages_of(self.objective, sampled, step, joined)
        if self.keep is not None:
            sampled, step = choices.kept_by_advantages(self.keep, sampled, step, advantages, joined, batches)
        self.last_step = replace(sampled, advantages=advantages)
        if self.reweighting is not None:
            step = choices.weighed(self.reweighting, sampled, step, advantages, joined, self.prompts.operations)
        skip = self.shortcuts.skip_zero_advantage and self.objective.skips_zero_advantage
        return step.with_advantages(advantages, skip, lambda counts: mean_over_ranks(self.trainer, counts))

    def _with_old(self, step: StepRows) -> StepRows:
        """Computes the step's old log-probabilities before its first update."""
        logprobs, entropy = score_step(self.scorer, self.model, step, self.cut)
        floor = entropy_floor(entropy, step.mask, self.objective.top_entropy, self.trainer.world_size)
        return step.with_old(logprobs, floor)

    def check_sampler(self, step: StepRows, update: int = 0) -> None:
        """Compares policy and sampler by the guard, only before the first update after a sync."""
        if self.guard is None or update > 0:
            return
        step = step if self.ahead is None else self.canary_rows(self.ahead.canary)
        assert step.old_logprobs is not None
        seen = step.old_logprobs, step.sampler_logprobs, step.scored_mask
        self.log_dict(self.guard.check(*seen, self.compute_dtype, self.trainer.world_size))

    def observe(self, sampled: GradedGroups) -> None:
        """Passes the outcomes of the step's prompts to the data operations, and to the rounds."""
        outcomes = gather_outcomes(sampled.outcomes, self.trainer.world_size)
        self.prompts.observe(outcomes)
        if self.dynamic_sampling is not None:
            self.dynamic_sampling.observe(outcomes)

    def report(
        self,
        generated: GradedGroups,
        trained: GradedGroups,
        step: StepRows,
        updates: dict[str, float],
        version: int,
    ) -> None:
        """Logs the step over all ranks: rewards, groups and lengths of generated and trained completions."""
        own = updates | self.phases.metrics() | generated.spent
        own |= (
            refill_metrics(generated, trained)
            | self.skipped_steps()
            | ({} if self.replay is None else self.replay.report)
        )
        own |= step.metrics() | ({} if self.keep is None else step.kept_share(trained.in_loss))
        completions = Completions.of(generated, self.prompts.plan.difficulty)
        ranks = gather_objects((own, completions, generated.parts), self.trainer.world_size)
        values = step_metrics(*zip(*ranks, strict=True), began=version) | self.prompts.metrics()
        self.log("reward", values["reward/mean"], prog_bar=True, logger=False)
        self.log_dict(values)

    # -- one step ahead ------------------------------------------------------------------------------------------------

    def look_ahead(self, batch: PromptBatch, batch_idx: int) -> None:
        """Begins with the epoch's next batch, by the weights that this one is trained from; only with `lookahead`."""
        if self.ahead is None:
            return
        following = self.prompts.draw_ahead() if batch_idx + 1 < self.trainer.num_training_batches else None
        if following is not None:
            self.ahead.begin(following, self.global_step + self.updates_per_batch, self.graded)
        if self.guard is not None:
            self.ahead.canary.begin(self.engine, batch, self.sampling, self.seed_at(self.global_step))

    def canary_rows(self, canary: Canary) -> StepRows:
        """Waits for the canary, and scores it by the policy: older weights have sampled the batch itself."""
        with self.phases("guard"):
            with agreed():
                rows = canary.rows(self.device)
            return self._with_old(rows)

    def wait_for_sampling(self) -> None:
        """Waits until nothing is sampled by the engine's present weights."""
        if self.ahead is not None and self.ahead.busy:
            with self.phases("wait"):
                self.ahead.wait()

    def sync(self) -> None:
        """Loads the present weights into the engine, but never while a batch is sampled: its tokens have one policy."""
        self.wait_for_sampling()
        super().sync()

    def close(self) -> None:
        """Closes the engine and the graders; first ends what a second thread waits for."""
        if self.ahead is not None:
            self.ahead.give_up(self.engine, self.rewards)
        super().close()

    # -- before the first step -----------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[lightning.Callback]:
        """Refuses settings that do not fit each other, before data or weights are loaded."""
        require_distinct(self.rewards)
        # Greedy groups are refused later, as what they are.
        if self.sampling.temperature > 0 and (self.guard or self.objective.reads_sampler):
            refuse_truncated_support(self.sampling)
        choices.refuse_unfit(self)
        return [*super().configure_callbacks(), *choices.in_checkpoints(self)]

    def setup(self, stage: str) -> None:
        """Refuses prompts that the rewards can't grade, those of training included, before weights are loaded.

        Args:
            stage: Stage of the run, as Lightning names it.

        Raises:
            InputError: naming what the prompts lack.
        """
        if stage == "fit":
            with agreed():
                for reward in self.rewards:
                    reward.require(self.prompts.pool.prompts)
                if self.reweighting is not None:
                    self.reweighting.check(self.prompts.pool.prompts)
        super().setup(stage)

    def on_fit_start(self) -> None:
        """Checks the batch arithmetic, which is printed."""
        arithmetic = BatchArithmetic.of(
            self, self.prompts, self.trainer.world_size, self.planned_batches(), self.context
        )
        arithmetic.check()
        rank_zero_info(arithmetic)
        score_as_sampled(self.model)
        self.scorer = Scorer(
            self.sampling.temperature,
            self.shortcuts.shared_prefix,
            self.shortcuts.tiled_head,
            self.objective.entropy_gradient,
        ).suited(self.model, arithmetic.row_tokens)
        self.cut = Cut(self.micro_tokens, self.scorer.shared_prefix, self.shortcuts.sort_by_length)
        if self.shortcuts.lean_layers:
            make_lean(self.model)
        if self.objective.needs_reference:  # in a tuple, so that it is no submodule and in no checkpoint
            self._reference = (Reference(self.policy, self.model, self.load_policy),)

    def planned_batches(self) -> int:
        """Number of batches that this run samples: the plan's, times epochs, limited by `trainer.max_steps`."""
        return planned_batches(self.trainer, len(self.prompts.plan.batches()), self.updates_per_batch)

    def on_train_start(self) -> None:
        """Starts the engine with the present weights; after a resume, these are the checkpoint's."""
        self.sync()
        super().on_train_start()

    def samplings(self) -> list:
        """Sampling settings of training and of the named sets."""
        return [self.sampling, *super().samplings()]
