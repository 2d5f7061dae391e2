"""What the step benchmark adds to the package's own command line: a reward and the gate between steps."""

from __future__ import annotations

import time
from collections.abc import Sequence

import lightning
import torch
from jaxtyping import Float
from lockstep import Gate
from torch import Tensor
from workload import reward

from saerl_lightning.records import Prompt, Rollouts
from saerl_lightning.reward.reward import Reward


class TextReward(Reward):
    """Rewards a completion by a number made of its text, one of a flat prompt by a constant.

    Args:
        seconds: how long a completion's grading takes; it waits without computing, as for a sandbox or a judge.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def __call__(self, prompts: Sequence[Prompt], rollouts: Rollouts) -> Float[Tensor, "P G"]:
        """Scores every completion."""
        time.sleep(self.seconds * len(rollouts.texts))
        uids = [prompt.uid for prompt in prompts for _ in range(rollouts.group_size)]
        rewards = [reward(uid, text) for uid, text in zip(uids, rollouts.texts, strict=True)]
        return torch.tensor(rewards).view(len(prompts), rollouts.group_size)


class PartReward(TextReward):
    """Is `TextReward` for two prompts in three, and gives the others nothing, whose groups then teach nothing."""

    def __call__(self, prompts: Sequence[Prompt], rollouts: Rollouts) -> Float[Tensor, "P G"]:
        """Scores every completion."""
        taught = torch.tensor([sum(prompt.uid.encode()) % 3 > 0 for prompt in prompts], dtype=torch.float32)
        return super().__call__(prompts, rollouts) * taught[:, None]


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
        length, flat = (logged.get(name, 0.0) for name in ("completions/length_mean", "groups/zero_variance_frac"))
        self.gate.wait(phases, length, flat)
