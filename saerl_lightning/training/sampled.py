"""What a training step sampled and how it was graded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saerl_lightning.records import Outcomes, PromptBatch, Rollouts


@dataclass(frozen=True)
class SampledStep:
    """P prompts with their graded groups."""

    batch: PromptBatch
    rollouts: Rollouts
    rewards: dict[str, Float[Tensor, "P G"]]  # by name
    total: Float[Tensor, "P G"]  # their weighted sum
    masks_truncated: bool = False  # whether completions that `max_tokens` cut off are left out of the loss
    advantages: Float[Tensor, "P G"] | None = None  # once all of the step is graded

    @classmethod
    def join(cls, parts: Sequence[SampledStep]) -> SampledStep:
        """Puts several under one another."""
        prompts = [prompt for part in parts for prompt in part.batch.prompts]
        ids, rows = [i for part in parts for i in part.batch.ids], [r for part in parts for r in part.batch.rows]
        return cls(
            PromptBatch(prompts, ids, rows),
            Rollouts.join([part.rollouts for part in parts]),
            {name: torch.cat([part.rewards[name] for part in parts]) for name in parts[0].rewards},
            torch.cat([part.total for part in parts]),
            parts[0].masks_truncated,
        )

    def of_groups(self, groups: Sequence[int]) -> SampledStep:
        """Some of the groups, given by their position, in that order."""
        batch, index = self.batch, torch.tensor(groups, dtype=torch.long)
        return SampledStep(
            PromptBatch(
                [batch.prompts[g] for g in groups], [batch.ids[g] for g in groups], [batch.rows[g] for g in groups]
            ),
            self.rollouts.of_groups(groups),
            {name: values[index] for name, values in self.rewards.items()},
            self.total[index],
            self.masks_truncated,
        )

    @property
    def in_loss(self) -> Bool[Tensor, "P G"]:
        """Which completions the loss sees: graded ones, and where `masks_truncated` those that ended by themselves."""
        graded = self.total.isfinite()
        return graded & ~self.rollouts.truncated.view_as(graded) if self.masks_truncated else graded

    @property
    def compared(self) -> Float[Tensor, "P G"]:
        """The totals that have a say in baselines: NaN for every completion that is not trained on."""
        return self.total.masked_fill(~self.in_loss, torch.nan)

    @property
    def varied(self) -> Bool[Tensor, " P"]:
        """Which groups have completions of different first reward, the one that says what is right.

        The others teach nothing, or nothing but a length or a format. Completions that the loss does not see have no say.
        """
        right = next(iter(self.rewards.values())).masked_fill(~self.in_loss, torch.nan)
        highest, lowest = right.nan_to_num(-torch.inf).amax(1), right.nan_to_num(torch.inf).amin(1)
        return highest - lowest > 1e-6  # none is seen: -inf

    @property
    def outcomes(self) -> Outcomes:
        """What was learned about the prompts; the first reward says what counts as right."""
        right = next(iter(self.rewards.values()))
        return Outcomes([prompt.uid for prompt in self.batch.prompts], self.total, right.nanmean(1))
