"""The rows of one optimiser step, and how a micro-batch of them becomes the inputs of a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saerl_lightning.objective.objective import LossInputs
from saerl_lightning.records import Rollouts
from saerl_lightning.training.micro_batches import micro_batches

Reduce = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class MicroBatch:
    """Rows of a step that go through the model together."""

    rows: Int[Tensor, " r"]  # positions in the step
    tokens: Int[Tensor, "r t"]  # trimmed to the longest of these rows
    mask: Bool[Tensor, "r t"]
    last: bool  # of this update: the one after which gradients are complete


@dataclass(frozen=True)
class StepRows:
    """Everything an update needs to know of the sampled rows; graded rows only, the mask of the others is empty.

    `old_logprobs` is filled by the first update, whose forward runs on the very weights that sampled: an on-policy step
    needs no second forward for it.
    """

    tokens: Int[Tensor, "R T"]
    mask: Bool[Tensor, "R T"]
    lengths: list[int]  # R, prompt and completion
    sampler_logprobs: Float[Tensor, "R T"]
    old_logprobs: Float[Tensor, "R T"]
    reference: Float[Tensor, "R T"] | None
    advantages: Float[Tensor, " R"]
    step_rows: float
    step_tokens: float

    @classmethod
    def collect(
        cls,
        rollouts: Rollouts,
        rewards: Float[Tensor, "P G"],
        advantages: Float[Tensor, "P G"],
        mean_over_ranks: Reduce,
        device: torch.device,
    ) -> StepRows:
        """Leaves out rows whose grader failed, and measures the step.

        A rank's loss is divided by the *mean* row and token counts over ranks, since data-parallel training averages
        the ranks' gradients: together that is the sum over all rows by the total count.
        """
        mask = rollouts.mask & rewards.isfinite().flatten()[:, None]
        size = mean_over_ranks(torch.stack([mask.any(1).sum(), mask.sum()]).to(device, torch.float32))
        rows, tokens = size.clamp(min=1).tolist()
        return cls(
            rollouts.tokens.to(device),
            mask.to(device),
            rollouts.lengths.tolist(),
            rollouts.logprobs.to(device),
            torch.zeros_like(rollouts.logprobs, device=device),
            None,
            advantages.flatten().to(device),
            rows,
            tokens,
        )

    def with_reference(self, reference: Float[Tensor, "R T"] | None) -> StepRows:
        """The same rows with the frozen reference's log-probabilities beside them."""
        return replace(self, reference=reference)

    def micro_batches(self, budget: int) -> Iterator[MicroBatch]:
        """Yields the rows in groups of at most `budget` tokens."""
        groups = micro_batches(self.lengths, budget)
        for i, group in enumerate(groups):
            rows = torch.tensor(group, device=self.tokens.device)
            width = max(self.lengths[r] for r in group)
            yield MicroBatch(rows, self.tokens[rows, :width], self.mask[rows, :width], last=i == len(groups) - 1)

    def inputs(self, micro: MicroBatch, logprobs: Float[Tensor, "r t"], first_update: bool) -> LossInputs:
        """What the objective sees of a micro-batch; the first update's log-probabilities become the old ones."""
        rows, width = micro.rows, micro.tokens.shape[1]
        if first_update:
            self.old_logprobs[rows, :width] = logprobs.detach().float()
        return LossInputs(
            logprobs,
            self.old_logprobs[rows, :width],
            self.sampler_logprobs[rows, :width],
            micro.mask,
            self.advantages[rows],
            None if self.reference is None else self.reference[rows, :width],
            self.step_rows,
            self.step_tokens,
        )
