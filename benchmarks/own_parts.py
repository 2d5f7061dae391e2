"""What the step benchmark adds to the package's own command line: a reward and the gate between steps."""

from __future__ import annotations

from collections.abc import Sequence

import lightning
import torch
from jaxtyping import Float
from lockstep import Gate
from torch import Tensor
from workload import text_reward

from saerl_lightning.records import Prompt, Rollouts
from saerl_lightning.reward.reward import Reward


class TextReward(Reward):
    """Rewards a completion by a number made of its text."""

    def __call__(self, prompts: Sequence[Prompt], rollouts: Rollouts) -> Float[Tensor, "P G"]:
        """Scores every completion."""
        return torch.tensor([text_reward(text) for text in rollouts.texts]).view(len(prompts), rollouts.group_size)


class StepGate(lightning.Callback):
    """Reports every step as the logs have it, and waits before the next.

    Args:
        reports: file the reports are written to.
    """

    def __init__(self, reports: str) -> None:
        self.gate = Gate(reports)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Ends the step before and begins this one."""
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        phases = {name.removeprefix("time/"): seconds for name, seconds in logged.items() if name.startswith("time/")}
        self.gate.wait(phases, logged.get("completions/length_mean", 0.0))
