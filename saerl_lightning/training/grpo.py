"""GRPOModule: the algorithm on one screen.

It deliberately does not know how prompts are chosen (the datamodule's plan), how completions are drawn (the engine), what
is right (the rewards) or what the loss is (the objective).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import lightning
import torch
from jaxtyping import Float
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from saerl_lightning.errors import RunStopped
from saerl_lightning.objective.objective import Objective
from saerl_lightning.policy.lean_layers import make_lean
from saerl_lightning.policy.load import Policy
from saerl_lightning.policy.scoring import Scorer
from saerl_lightning.ranges import Count, CountFrom0, Positive, require_in_range
from saerl_lightning.records import PromptBatch, Sampling
from saerl_lightning.reward.reward import Reward, no_grades, require_distinct, weighted_sum
from saerl_lightning.rollout.engine import RolloutEngine
from saerl_lightning.training.arithmetic import BatchArithmetic
from saerl_lightning.training.distributed import Phases, gather_objects, gather_outcomes, gradient_sync, mean_over_ranks
from saerl_lightning.training.dynamic_sampling import DynamicSampling
from saerl_lightning.training.grading import GradedGroups, Reference, entropy_floor, sample_and_grade, score_step
from saerl_lightning.training.guard import MismatchGuard, refuse_truncated_support
from saerl_lightning.training.loggers import GRPO
from saerl_lightning.training.metrics import (
    Completions,
    MetricSum,
    averaged,
    over_ranks,
    refill_metrics,
    throughput_metrics,
)
from saerl_lightning.training.optimization import Gradients
from saerl_lightning.training.policy_module import PolicyModule, refuse_adapter_dropout, score_as_sampled
from saerl_lightning.training.rows import Cut, StepRows
from saerl_lightning.training.shortcuts import Shortcuts


def adamw(params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW at a learning rate of 1e-6 without weight decay, the field's default for full-weight training."""
    return torch.optim.AdamW(params, lr=1e-6, weight_decay=0.0, fused=True)


class GRPOModule(PolicyModule):
    """Trains a policy by group-relative policy optimisation (arXiv 2402.03300), or whatever `objective` says.

    Args:
        policy: the model to train.
        engine: samples the completions.
        rewards: grade them; the first one also grades evaluation.
        objective: rewards to advantages, log-probabilities to loss.
        sampling: how training completions are drawn.
        optimizer: built over the trained weights.
        lr_scheduler: stepped once an optimiser step; null keeps the rate.
        warmup_steps: optimiser steps until the full learning rate.
        updates_per_batch: optimiser steps on each sampled batch; 1 is on-policy.
        micro_tokens: most tokens (padding included) that go through the model at once; memory, not mathematics.
        dynamic_sampling: replaces groups without variance by groups of the plan's next prompts; null does not.
        shortcuts: Computations that a step skips because they do not change its gradient: `all`, `none`, or a list of
            shared_prefix, lean_layers, tiled_head, skip_zero_advantage, reuse_forward, sort_by_length, overlap_grading.
        max_grad_norm: gradients are scaled down to this norm; null does not.
        guard: stops the run when the sampler's log-probabilities are not the policy's; null does not look.
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
        dynamic_sampling: DynamicSampling | None = None,
        shortcuts: list[str] | str = "all",
        max_grad_norm: Positive | None = 1.0,
        guard: MismatchGuard | None = MismatchGuard(),  # noqa: B008  # frozen
    ) -> None:
        super().__init__()
        refuse_adapter_dropout(policy)
        self.automatic_optimization = False
        self.policy = policy
        self.engine = engine
        self.rewards = rewards
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
        self.phases = Phases()
        self.gradients = Gradients()
        self.last_step: GradedGroups | None = None
        require_in_range(self)

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Samples, scores and descends."""
        with self.phases("sync"):
            self.sync()
        version = self.weight_version
        generated, trained = self.sample_and_grade(batch)
        step = self.step_rows(trained)
        updates: list[dict[str, float]] = []
        for update in range(self.updates_per_batch):
            sums, micro_batches, old = MetricSum(), step.micro_batches(self.cut), []
            for number, rows in enumerate(map(step.of_rows, micro_batches), 1):
                with self.phases("forward"):
                    logprobs, entropy = self.scorer(self.model, rows.tokens, rows.written, rows.prompts)
                    inputs = rows.inputs(logprobs, entropy)
                    loss, terms = self.objective(inputs)
                with self.phases("backward"), gradient_sync(self.trainer, last=number == len(micro_batches)):
                    self.manual_backward(loss)
                sums.add({**terms, "loss": loss, "policy/entropy": rows.mean(entropy)})
                old.append(inputs.old_logprobs)
            if step.old_logprobs is None:
                step = step.with_old(step.joined(micro_batches, old))
            self.check_sampler(step, update)
            numbers = sums.numbers()
            updates.append(numbers | self.descend(numbers["loss"], batch))
        with self.phases("sync"):
            self.sync()
        self.observe(generated)
        self.report(generated, trained, step, averaged(updates), version)

    # -- the verbs of a step -------------------------------------------------------------------------------------------

    def sample_and_grade(self, batch: PromptBatch) -> tuple[GradedGroups, GradedGroups]:
        """Draws G completions a prompt and grades them; groups that teach nothing may give way to the next prompts.

        Returns:
            All groups that were generated, and those to train on.

        Raises:
            RunStopped: if not one completion of all ranks could be graded.
        """
        first = self.sample(batch, 0)
        gather = partial(gather_objects, ranks=self.trainer.world_size)
        if not any(gather(bool(first.total.isfinite().any()))):
            raise RunStopped(no_grades(self.rewards, first.rewards), everywhere=True)
        if self.dynamic_sampling is None:
            return first, first
        return self.dynamic_sampling.fill(first, self.sample, self.prompts.next_prompts, gather)

    def sample(self, batch: PromptBatch, round: int) -> GradedGroups:
        """Completes and grades some prompts; `round` 0 is the batch itself, later ones are refills."""
        place = self.global_step * self.trainer.world_size + self.global_rank
        sampling = replace(self.sampling, seed=self.sampling.seed + 7919 * place + 1_000_003 * round)
        overlap = self.shortcuts.overlap_grading
        rollouts, rewards = sample_and_grade(self.engine, self.rewards, batch, sampling, self.phases, overlap)
        total = weighted_sum(self.rewards, rewards)
        rounds = [round] * len(batch.prompts)
        return GradedGroups(batch, rollouts, rewards, total, rounds, self.objective.masks_truncated)

    def step_rows(self, sampled: GradedGroups) -> StepRows:
        """Lays the graded rows out for the updates, with all that the objective wants to know of them."""
        self.rest()
        step = StepRows.lay_out(sampled.rollouts, sampled.in_loss.flatten(), self.sampling.max_tokens, self.device)
        if self.objective.needs_reference:
            with self.phases("reference"):
                step = step.with_reference(self._reference[0].logprobs(self.scorer, step, self.cut))
        if self.objective.top_entropy < 1 or not self.shortcuts.reuse_forward:
            with self.phases("old"):
                step = self._with_old(step)
        advantages = self.advantages(sampled, step)
        self.last_step = replace(sampled, advantages=advantages)
        skip = self.shortcuts.skip_zero_advantage and self.objective.skips_zero_advantage
        return step.with_advantages(advantages, skip, lambda counts: mean_over_ranks(self.trainer, counts))

    def advantages(self, sampled: GradedGroups, step: StepRows) -> Float[Tensor, "P G"]:
        """This rank's advantages; the objective sees the rewards of all ranks' trained rows, less their penalty."""
        total = sampled.compared
        if step.reference is not None:
            penalty = self.objective.penalty(step.sampler_logprobs, step.reference, step.mask)
            total = total if penalty is None else total - penalty.view_as(total).cpu()
        everywhere = gather_objects(total, self.trainer.world_size)
        own = sum(len(rewards) for rewards in everywhere[: self.global_rank])
        return self.objective.advantages(torch.cat(everywhere))[own : own + len(total)]

    def _with_old(self, step: StepRows) -> StepRows:
        """Scores the step before its first update."""
        logprobs, entropy = score_step(self.scorer, self.model, step, self.cut)
        floor = entropy_floor(entropy, step.mask, self.objective.top_entropy, self.trainer.world_size)
        return step.with_old(logprobs, floor)

    def check_sampler(self, step: StepRows, update: int) -> None:
        """Lets the guard compare policy and sampler, on the first update after a sync only."""
        if self.guard is None or update > 0:
            return
        assert step.old_logprobs is not None
        seen = step.old_logprobs, step.sampler_logprobs, step.scored_mask
        self.log_dict(self.guard.check(*seen, self.compute_dtype, self.trainer.world_size))

    def observe(self, sampled: GradedGroups) -> None:
        """Tells the data operations what the step learned about its prompts."""
        self.prompts.observe(gather_outcomes(sampled.outcomes, self.trainer.world_size))

    def report(
        self,
        generated: GradedGroups,
        trained: GradedGroups,
        step: StepRows,
        updates: dict[str, float],
        version: int,
    ) -> None:
        """Logs the step of all ranks: rewards, groups and lengths of what was generated, and what of it was trained on."""
        own = updates | {f"time/{phase}": seconds for phase, seconds in self.phases.drain().items()}
        own |= refill_metrics(generated, trained) | self.skipped_steps()
        own["rollouts/scored_frac"] = len(step.scored) / len(step.lengths)
        own["rollouts/scored_tokens"] = float(step.scored_row_tokens)
        ranks = gather_objects((own, Completions.of(generated)), self.trainer.world_size)
        values = over_ranks([numbers for numbers, _ in ranks])
        values |= Completions.join([completions for _, completions in ranks]).metrics(version)
        values |= throughput_metrics(values) | self.prompts.metrics()
        self.log("reward", values["reward/mean"], prog_bar=True, logger=False)
        self.log_dict(values)

    # -- before the first step -----------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[lightning.Callback]:
        """Refuses settings that do not fit each other before data or weights are loaded."""
        require_distinct(self.rewards)
        # Greedy groups are refused later, as what they are.
        if self.sampling.temperature > 0 and (self.guard or self.objective.reads_sampler):
            refuse_truncated_support(self.sampling)
        return super().configure_callbacks()

    def on_fit_start(self) -> None:
        """Refuses a batch that does not fit, and says what the run will do."""
        arithmetic = BatchArithmetic(
            prompts=self.prompts.batch_size,
            sampling=self.sampling,
            max_prompt_tokens=self.prompts.chat.max_prompt_tokens,
            micro_tokens=self.micro_tokens,
            updates_per_batch=self.updates_per_batch,
            ranks=self.trainer.world_size,
            batches=self.planned_batches(),
            context=self.context,
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
            self._reference = (Reference(self.policy, self.model),)

    def planned_batches(self) -> int:
        """Batches this run samples: the plan's, times epochs, unless `trainer.max_steps` ends it before."""
        an_epoch, epochs = len(self.prompts.plan.batches()), self.trainer.max_epochs
        limits = [an_epoch * epochs] if epochs is not None and epochs >= 0 else []
        if self.trainer.max_steps >= 0:
            limits.append(-(-self.trainer.max_steps // max(1, self.updates_per_batch)))
        return min(limits, default=an_epoch)

    def on_train_start(self) -> None:
        """Starts the engine with the present weights: the checkpoint's, after a resume."""
        self.sync()
        super().on_train_start()

    def samplings(self) -> list:
        """Training's own sampling beside those of the named sets."""
        return [self.sampling, *super().samplings()]
