"""SFTModule: supervised fine-tuning on the answers, a cold start for policies too weak to earn a first reward."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

from saerl_lightning.objective.losses import token_mean
from saerl_lightning.policy.load import Policy
from saerl_lightning.policy.logprobs import score
from saerl_lightning.policy.weights import with_whole_weights
from saerl_lightning.ranges import CountFrom0, Positive, require_in_range
from saerl_lightning.ranks.collectives import agreed, mean_over_ranks
from saerl_lightning.records import PromptBatch, Rollouts
from saerl_lightning.reward.function import as_rewards
from saerl_lightning.reward.reward import Reward, require_answer
from saerl_lightning.rollout.engine import RolloutEngine
from saerl_lightning.training.loggers import SFT
from saerl_lightning.training.metrics import Phases
from saerl_lightning.training.optimization import Gradients, require_makers
from saerl_lightning.training.policy_module import PolicyModule


def adamw(params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW at a learning rate of 1e-5, without weight decay."""
    return torch.optim.AdamW(params, lr=1e-5, weight_decay=0.0, fused=True)


class SFTModule(PolicyModule):
    """Trains a policy to give each prompt's answer; the loss is over the answer's tokens only.

    Args:
        policy: Policy to train.
        engine: Engine that samples completions for evaluation.
        rewards: Rewards, of which the first grades evaluation. In Python, a function will do.
        target: Text that the policy should give; `{answer}` stands for the prompt's answer.
        optimizer: Optimiser, built over the trained weights.
        lr_scheduler: Learning-rate schedule, advanced once an optimiser step; null keeps the rate constant.
        warmup_steps: Number of optimiser steps until the full learning rate.
        max_grad_norm: Norm that gradients are scaled down to; null does not scale them.
    """

    _step_names = SFT

    def __init__(
        self,
        policy: Policy,
        engine: RolloutEngine,
        rewards: list[Reward],
        target: str = "{answer}",
        optimizer: OptimizerCallable = adamw,
        lr_scheduler: LRSchedulerCallable | None = None,
        warmup_steps: CountFrom0 = 0,
        max_grad_norm: Positive | None = 1.0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy = policy
        self.engine = engine
        self.rewards = as_rewards(f"{type(self).__name__}.rewards", rewards)
        self.target = target
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.warmup_steps = warmup_steps
        self.max_grad_norm = max_grad_norm
        self.phases = Phases()
        self.gradients = Gradients()
        require_makers(type(self).__name__, optimizer, lr_scheduler)
        require_in_range(self)

    def setup(self, stage: str) -> None:
        """Refuses prompts without an answer to train on, beside what every module refuses.

        Args:
            stage: Stage of the run, as Lightning names it.

        Raises:
            InputError: naming the first one.
        """
        super().setup(stage)
        if stage == "fit" and "{answer}" in self.target:
            with agreed():
                for prompt in self.prompts.pool.prompts:
                    require_answer(prompt, "SFTModule")

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Minimises the negative log-likelihood of the answers, a mean over the answer tokens of all ranks.

        Data-parallel training averages the ranks' gradients, so a rank divides by the mean of the ranks' token counts.
        """
        rows = self.rows(batch)
        tokens, mask = rows.tokens.to(self.device), rows.own.to(self.device)
        logprobs, _ = with_whole_weights(self.model, score, self.model, tokens, mask)
        count = mean_over_ranks(self.trainer, mask.sum().float())
        loss = -token_mean(logprobs, mask, count.item())
        self.manual_backward(loss)
        self.log_dict(self.descend(loss.item(), batch) | self.skipped_steps())
        self.log("loss", loss.item(), prog_bar=True, sync_dist=self.trainer.world_size > 1)
        self.prompts.advance()

    def rows(self, batch: PromptBatch) -> Rollouts:
        """Builds rows of prompt and answer, each ended by the end-of-text token."""
        end = self.tokenizer.eos_token_id
        texts = [self.target.format(answer=prompt.answer) for prompt in batch.prompts]
        answers = [[*self.tokenizer(text, add_special_tokens=False)["input_ids"], end] for text in texts]
        nothing = [[0.0] * len(answer) for answer in answers]
        return Rollouts.pack(batch.ids, answers, nothing, [False] * len(answers), texts, 1, version=self.global_step)
