"""CompletionTable: logs some completions of a step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.loggers import WandbLogger

from saerl_lightning.ranges import Count, CountFrom0, require_in_range
from saerl_lightning.training.grading import GradedGroups
from saerl_lightning.training.grpo import GRPOModule

COMPLETION = ["step", "uid", "prompt", "completion", "answer", "reward", "advantage", "truncated"]


class CompletionTable(lightning.Callback):
    """Logs some completions of a step: to `completions.jsonl` in the run folder, and to W&B as one table a step.

    A table is logged for the first batch, and then whenever the optimiser steps reach or pass a multiple of
    `every_n_steps`.

    Args:
        every_n_steps: Number of optimiser steps between tables.
        prompts: Number of prompts in a table, each with its whole group.
    """

    def __init__(self, every_n_steps: Count = 50, prompts: CountFrom0 = 2) -> None:
        self.every_n_steps = every_n_steps
        self.prompts = prompts
        require_in_range(self)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Writes the table of the present batch, if one is due."""
        if not (trainer.is_global_zero and isinstance(pl_module, GRPOModule) and pl_module.last_step):
            return
        step = trainer.global_step
        before = step - pl_module.updates_per_batch
        if before > 0 and step // self.every_n_steps == before // self.every_n_steps:
            return
        rows = completion_rows(pl_module.last_step, step, self.prompts)
        with Path(trainer.default_root_dir, "completions.jsonl").open("a") as file:
            file.writelines(json.dumps(dict(zip(COMPLETION, row, strict=True))) + "\n" for row in rows)
        for logger in trainer.loggers:
            # W&B keeps only the last table of a key, so each step has its own key.
            if isinstance(logger, WandbLogger):
                logger.log_table(f"completions/step_{step}", columns=COMPLETION, data=rows)


def completion_rows(sampled: GradedGroups, step: int, prompts: int) -> list[list[object]]:
    """Rows of the groups of a step's first `prompts` prompts, one a completion, with the columns `COMPLETION`."""
    rows: list[list[object]] = []
    group = sampled.rollouts.group_size
    assert sampled.advantages is not None
    for p, prompt in enumerate(sampled.batch.prompts[:prompts]):
        for g in range(group):
            reward, advantage = sampled.total[p, g].item(), sampled.advantages[p, g].item()
            text, cut = sampled.rollouts.texts[p * group + g], bool(sampled.rollouts.truncated[p * group + g])
            rows.append([step, prompt.uid, prompt.text, text, prompt.answer, reward, advantage, cut])
    return rows
