"""A tiny policy, a reward that a random policy earns half the time, and one way to fit."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import lightning
import pytest
import torch

from saerl_lightning.assets.tiny import build_tiny_policy
from saerl_lightning.data.module import PromptDataModule
from saerl_lightning.objective.grpo import GRPO
from saerl_lightning.policy.load import Policy
from saerl_lightning.prompts.chat import ChatTemplate
from saerl_lightning.prompts.source import PromptSource
from saerl_lightning.records import Prompt, Sampling
from saerl_lightning.reward.reward import Reward
from saerl_lightning.rollout.hf import HFEngine
from saerl_lightning.training.grpo import GRPOModule
from saerl_lightning.training.rng import RandomStates


class Sums(PromptSource):
    """Sums of two digits."""

    def __init__(self, count: int = 24) -> None:
        self.count = count

    def load(self) -> list[Prompt]:
        pairs = [(i % 10, i // 10) for i in range(self.count)]
        return [Prompt.asking(f"sum/{a}+{b}", f"{a}+{b}=", str(a + b), topic=f"plus {b}") for a, b in pairs]


class ParityReward(Reward):
    """Rewards completions whose first token is even: any policy earns it about half the time."""

    def __call__(self, prompts, rollouts):
        first = rollouts.tokens.gather(1, rollouts.mask.int().argmax(1, keepdim=True))
        return (first % 2 == 0).float().view(len(prompts), rollouts.group_size)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    texts = [p.text + p.answer for p in Sums(100).load()]
    return str(build_tiny_policy(str(folder), texts, hidden_size=64, layers=2, vocab_size=280))


def sgd(params):
    return torch.optim.SGD(params, lr=0.5)


def module(tiny: str, **changes) -> GRPOModule:
    settings = {
        "policy": Policy(tiny),
        "engine": HFEngine(),
        "rewards": [ParityReward()],
        "objective": GRPO(),
        "sampling": Sampling(group_size=8, max_tokens=6, seed=3),
        "optimizer": sgd,
    }
    return GRPOModule(**{**settings, **changes})


def data(**changes) -> PromptDataModule:
    settings = {"train": Sums(), "batch_size": 4, "chat": ChatTemplate(max_prompt_tokens=32)}
    return PromptDataModule(**{**settings, **changes})


def trainer(folder: Path, steps: int, callbacks: tuple[lightning.Callback, ...] = (), **changes) -> lightning.Trainer:
    settings = {
        "accelerator": os.environ.get("ACCELERATOR", "cpu"),  # `ACCELERATOR=gpu pytest tests/training` tests a GPU
        "devices": 1,
        "max_steps": steps,
        "max_epochs": -1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "default_root_dir": folder,
        "num_sanity_val_steps": 0,
    }
    return lightning.Trainer(**{**settings, **changes}, callbacks=[RandomStates(), *callbacks])


def fit(module, datamodule, trainer, **changes):
    """Fits, deaf to what Lightning says of itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
        warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
        trainer.fit(module, datamodule, **changes)
    return module


def weights(module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.model.state_dict().items()}


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max((a[name].cpu() - b[name].cpu()).abs().max().item() for name in a)
