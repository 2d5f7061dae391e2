"""GRPOModule: the algorithm on one screen.

It deliberately does not know how prompts are chosen (the datamodule's plan), how completions are drawn (the engine), what
is right (the rewards) or what the loss is (the objective).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from saerl_lightning.errors import InputError
from saerl_lightning.objective.objective import Objective
from saerl_lightning.policy.load import Policy
from saerl_lightning.policy.logprobs import score
from saerl_lightning.records import Outcomes, PromptBatch, Rollouts, Sampling
from saerl_lightning.reward.reward import Reward
from saerl_lightning.reward.total import grade, require_distinct, weighted_sum
from saerl_lightning.rollout.engine import RolloutEngine
from saerl_lightning.training import report
from saerl_lightning.training.arithmetic import BatchArithmetic
from saerl_lightning.training.distributed import gather_outcomes, gradient_sync, mean_over_ranks
from saerl_lightning.training.guard import MismatchGuard
from saerl_lightning.training.phases import Phases
from saerl_lightning.training.policy import PolicyModule
from saerl_lightning.training.reference import Reference
from saerl_lightning.training.step import StepRows


def adamw(params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW at a learning rate of 1e-6 without weight decay, the field's default for full-weight training."""
    return torch.optim.AdamW(params, lr=1e-6, weight_decay=0.0, fused=True)


@dataclass(frozen=True)
class SampledStep:
    """What a training step sampled and how it was graded."""

    batch: PromptBatch
    rollouts: Rollouts
    rewards: dict[str, Float[Tensor, "P G"]]  # by name
    total: Float[Tensor, "P G"]  # their weighted sum
    advantages: Float[Tensor, "P G"]


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
        max_grad_norm: gradients are scaled down to this norm; null does not.
        guard: stops the run when the sampler's log-probabilities are not the policy's; null does not look.
    """

    def __init__(
        self,
        policy: Policy,
        engine: RolloutEngine,
        rewards: list[Reward],
        objective: Objective,
        sampling: Sampling = Sampling(),  # noqa: B008  # frozen
        optimizer: OptimizerCallable = adamw,
        lr_scheduler: LRSchedulerCallable | None = None,
        warmup_steps: int = 0,
        updates_per_batch: int = 1,
        micro_tokens: int = 16384,
        max_grad_norm: float | None = 1.0,
        guard: MismatchGuard | None = MismatchGuard(),  # noqa: B008  # frozen
    ) -> None:
        super().__init__()
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
        self.max_grad_norm = max_grad_norm
        self.guard = guard
        self.phases = Phases()
        self.last_step: SampledStep | None = None

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Samples, scores and descends."""
        sampled = self.sample_and_grade(batch)
        step = self.step_rows(sampled)
        metrics = report.MetricSum()
        for update in range(self.updates_per_batch):
            for micro in step.micro_batches(self.micro_tokens):
                with self.phases("forward"):
                    logprobs, entropy = score(self.model, micro.tokens, micro.mask, self.sampling.temperature)
                    loss, terms = self.objective(step.inputs(micro, logprobs, first_update=update == 0))
                with self.phases("backward"), gradient_sync(self.trainer, micro.last):
                    self.manual_backward(loss)
                terms |= {"loss": loss.detach(), "policy/entropy": entropy.sum() / step.step_tokens}
                metrics.add(terms, scale=1 / self.updates_per_batch)
            self.check_sampler(step, update)
            metrics.note(self.descend(float(metrics.values["loss"]), batch))
        with self.phases("sync"):
            self.sync()
        self.observe(sampled)
        self.report(sampled, metrics)

    # -- the verbs of a step -------------------------------------------------------------------------------------------

    def sample_and_grade(self, batch: PromptBatch) -> SampledStep:
        """Draws G completions a prompt, grades them and compares each with its group."""
        seed = self.sampling.seed + 7919 * (self.global_step * self.trainer.world_size + self.global_rank)
        with self.phases("generate"):
            rollouts = self.engine.generate(batch.ids, replace(self.sampling, seed=seed))
            self.engine.sleep()  # its memory is the update's until the next sync
        with self.phases("score"):
            rewards = grade(self.rewards, batch.prompts, rollouts)
            total = weighted_sum(self.rewards, rewards)  # (P, G)
        return SampledStep(batch, rollouts, rewards, total, self.objective.advantages(total))

    def step_rows(self, sampled: SampledStep) -> StepRows:
        """Lays the graded rows out for the updates, with the reference's log-probabilities where the loss needs them."""
        step = StepRows.collect(
            sampled.rollouts,
            sampled.total,
            sampled.advantages,
            mean_over_ranks=lambda counts: mean_over_ranks(self.trainer, counts),
            device=self.device,
        )
        if not self.objective.needs_reference:
            return step
        with self.phases("reference"):
            return step.with_reference(self._reference[0].logprobs(step, self.micro_tokens, self.sampling.temperature))

    def check_sampler(self, step: StepRows, update: int) -> None:
        """Lets the guard compare policy and sampler, on the first update after a sync only."""
        if self.guard is None or update > 0 or not step.mask.any():
            return
        self.log_dict(self.guard.check(step.old_logprobs, step.sampler_logprobs, step.mask, self.compute_dtype))

    def observe(self, sampled: SampledStep) -> None:
        """Tells the data operations what the step learned about its prompts."""
        uids = [prompt.uid for prompt in sampled.batch.prompts]
        outcomes = Outcomes(uids, sampled.total, sampled.rewards[self.rewards[0].name].nanmean(1))
        self.prompts.observe(gather_outcomes(outcomes, self.trainer.world_size))
        self.last_step = sampled

    def report(self, sampled: SampledStep, metrics: report.MetricSum) -> None:
        """Logs the step."""
        rollouts = sampled.rollouts
        values = {name: float(value) for name, value in metrics.values.items()}
        values |= report.reward_metrics(sampled.rewards, sampled.total)
        values |= report.group_metrics(sampled.total, rollouts)
        values |= report.completion_metrics(rollouts)
        values |= report.time_metrics(self.phases.drain(), rollouts)
        values |= self.prompts.metrics()
        values["rollouts/staleness"] = (
            self.global_step - self.updates_per_batch - rollouts.weight_version.float().mean().item()
        )
        many = self.trainer.world_size > 1
        self.log("reward", values["reward/mean"], prog_bar=True, logger=False, sync_dist=many)
        self.log_dict(dict(values), sync_dist=many)

    # -- before the first step -----------------------------------------------------------------------------------------

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype the forward runs in: the weights', or autocast's where it is on."""
        if torch.is_autocast_enabled(self.device.type):
            return torch.get_autocast_dtype(self.device.type)
        return next(self.model.parameters()).dtype

    def on_fit_start(self) -> None:
        """Refuses settings that do not fit each other, and says what the run will do."""
        require_distinct(self.rewards)
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
        self._refuse_biased_ratio()
        rank_zero_info(arithmetic)
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

    def samplings(self) -> list:
        """Training's own sampling beside those of the named sets."""
        return [self.sampling, *super().samplings()]

    def _refuse_biased_ratio(self) -> None:
        if self.sampling.full_support or not (self.objective.corrects_sampler or self.guard):
            return
        raise InputError(
            f"sampling.top_p {self.sampling.top_p}, top_k {self.sampling.top_k}: the sampler's log-probabilities are then "
            "those of a truncated distribution, so importance correction would be biased by the kept mass and the guard "
            "would see a mismatch; write top_p 1.0 and top_k 0, or --model.guard null and an objective without "
            "importance_cap"
        )
