"""Batch arithmetic: how batches become optimiser steps, printed before the first step and checked for consistency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from saerl_lightning.errors import InputError
from saerl_lightning.records import Sampling

if TYPE_CHECKING:
    import lightning

    from saerl_lightning.data.module import PromptDataModule
    from saerl_lightning.training.grpo import GRPOModule


def planned_batches(trainer: lightning.Trainer, an_epoch: int, updates_per_batch: int) -> int:
    """Number of batches that a run samples: an epoch's, times epochs, limited by `trainer.max_steps`.

    Args:
        trainer: Trainer of the run.
        an_epoch: Number of batches of an epoch.
        updates_per_batch: Number of optimiser steps on each batch.
    """
    epochs = trainer.max_epochs
    limits = [an_epoch * epochs] if epochs is not None and epochs >= 0 else []
    if trainer.max_steps >= 0:
        limits.append(-(-trainer.max_steps // max(1, updates_per_batch)))
    return min(limits, default=an_epoch)


@dataclass(frozen=True)
class BatchArithmetic:
    """Numbers that determine how a batch becomes optimiser steps.

    Args:
        prompts: Number of prompts in a step, over all ranks.
        sampling: Sampling settings, for group size and longest completion.
        max_prompt_tokens: Largest length of a prompt, in tokens.
        micro_tokens: Largest number of tokens of a micro-batch, padding included.
        updates_per_batch: Number of optimiser steps on each sampled batch.
        ranks: Number of processes that train.
        batches: Number of sampled batches in the run.
        context: Longest sequence of the policy, in tokens; null if its config does not say.
    """

    prompts: int
    sampling: Sampling
    max_prompt_tokens: int
    micro_tokens: int
    updates_per_batch: int
    ranks: int
    batches: int
    context: int | None

    @classmethod
    def of(
        cls, module: GRPOModule, data: PromptDataModule, ranks: int, batches: int, context: int | None
    ) -> BatchArithmetic:
        """Takes the numbers of the settings.

        Args:
            module: Module of the run; only its settings are read.
            data: Datamodule of the run; its prompts are not read.
            ranks: Number of processes that share a batch.
            batches: Number of batches that the run samples.
            context: Context of the model in tokens; null if its configuration does not say.
        """
        return cls(
            prompts=data.batch_size,
            sampling=module.sampling,
            max_prompt_tokens=data.chat.max_prompt_tokens,
            micro_tokens=module.micro_tokens,
            updates_per_batch=module.updates_per_batch,
            ranks=ranks,
            batches=batches,
            context=context,
        )

    @property
    def row_tokens(self) -> int:
        """Tokens of the longest possible row: prompt and completion."""
        return self.max_prompt_tokens + self.sampling.max_tokens

    def check(self) -> None:
        """Refuses numbers that do not fit each other.

        Raises:
            InputError: naming the settings and values that would fit.
        """
        group = self.sampling.group_size
        if group < 2:
            raise InputError(f"sampling.group_size is {group}: one completion has no group to be better than; write 2+")
        if self.sampling.temperature == 0:
            raise InputError("sampling.temperature is 0: greedy groups are copies of one completion; write e.g. 1.0")
        if self.updates_per_batch < 1:
            raise InputError(f"updates_per_batch is {self.updates_per_batch}; write 1 (on-policy) or more")
        if self.context is not None and self.row_tokens > self.context:
            raise InputError(
                f"chat.max_prompt_tokens {self.max_prompt_tokens} + sampling.max_tokens {self.sampling.max_tokens} = "
                f"{self.row_tokens} tokens is beyond the policy's context of {self.context}; lower one of them"
            )
        if self.row_tokens > self.micro_tokens:
            raise InputError(
                f"micro_tokens is {self.micro_tokens}, but one row may have {self.row_tokens} tokens "
                f"({self.max_prompt_tokens} prompt + {self.sampling.max_tokens} completion); write {self.row_tokens} or more"
            )

    def __str__(self) -> str:
        """Writes the arithmetic, one fact a line."""
        rows = self.prompts * self.sampling.group_size
        a_rank = rows // self.ranks
        most = -(-a_rank // max(1, self.micro_tokens // self.row_tokens))
        steps = self.batches * self.updates_per_batch
        tokens = self.batches * rows * self.sampling.max_tokens
        return "\n".join(
            [
                f"{self.prompts} prompts x {self.sampling.group_size} completions = {rows} rows a batch, "
                f"{a_rank} on each of {self.ranks} rank(s)",
                f"forward and backward in 1 to {most} micro-batches a rank, of at most {self.micro_tokens:,} tokens each",
                f"{self.batches:,} batches x {self.updates_per_batch} update(s) = {steps:,} optimiser steps",
                f"at most {tokens:,} sampled tokens ({rows * self.sampling.max_tokens:,} a batch)",
            ]
        )
