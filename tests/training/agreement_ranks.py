"""Runs over two processes of which the second alone fails, each in another place: `python agreement_ranks.py POLICY FOLDER`.

Each process writes what stopped it, by the name of the place. Used by test_agreement.py.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

import torch

from saerl_lightning.data.module import PromptDataModule
from saerl_lightning.errors import InputError
from saerl_lightning.policy.load import Policy
from saerl_lightning.ranks.collectives import agreed
from saerl_lightning.records import Sampling
from saerl_lightning.rollout.hf import HFEngine
from saerl_lightning.training.callbacks import ValidateAtStart
from saerl_lightning.training.rounds.dynamic_sampling import DynamicSampling
from tests.training.conftest import ParityReward, Sums, data, fit, module, trainer
from tests.training.equal_ranks import Unseen


def on_second() -> bool:
    return os.environ.get("LOCAL_RANK") == "1"


class Engine(HFEngine):
    """Fails on the second process in its n-th call."""

    def __init__(self, generate: int = 99, load: int = 99) -> None:
        super().__init__()
        self.left = {"generate": generate, "load": load}

    def count(self, what: str) -> None:
        self.left[what] -= 1
        if on_second() and not self.left[what]:
            raise ConnectionError(f"{what}: nobody answers")

    def stream(self, prompt_ids, sampling):
        self.count("generate")
        return super().stream(prompt_ids, sampling)

    def load_weights(self, named_tensors, version):
        super().load_weights(named_tensors, version)
        self.count("load")


class Grader(ParityReward):
    """Fails on the second process, once it has graded so many batches."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.batches = batches

    def __call__(self, prompts, rollouts):
        self.batches -= 1
        if on_second() and self.batches < 0:
            raise InputError("the grader's key is wrong")
        return super().__call__(prompts, rollouts)


class NeverVary(ParityReward):
    """Gives the same to all, so that every round refills."""

    def __call__(self, prompts, rollouts):
        return torch.zeros(len(prompts), rollouts.group_size)


class Missing(Policy):
    """A folder that the second machine lacks."""

    def load_model(self):
        if on_second():
            raise InputError("no folder here")
        return super().load_model()


def validated() -> PromptDataModule:
    return data(val={"five": Unseen()}, val_batch_size=1, val_sampling=Sampling(group_size=2, max_tokens=4))


def cases(policy: str) -> dict:
    return {
        "weights": (module(policy, engine=Engine(load=2)), data()),
        "sampling": (module(policy, engine=Engine(generate=2)), data()),
        "grading": (module(policy, rewards=[Grader(1)]), data()),
        "refill": (
            module(policy, rewards=[NeverVary()], engine=Engine(generate=2), dynamic_sampling=DynamicSampling()),
            data(train=Sums(60)),
        ),
        "validation": (module(policy, rewards=[Grader(1)]), validated()),
        "model": (module(policy, policy=Missing(policy)), data()),
    }


def main(policy: str, folder: str) -> None:
    warnings.simplefilter("ignore")
    rank, said = os.environ.get("LOCAL_RANK", "0"), {}
    for name, (ours, prompts) in cases(policy).items():
        run = trainer(Path(folder), 3, (ValidateAtStart(),), devices=2, strategy="ddp", limit_val_batches=1.0)
        try:
            fit(ours, prompts, run)
            said[name] = ["", False]
        except Exception as error:
            said[name] = [f"{type(error).__name__}: {error}", getattr(error, "everywhere", False)]
        with agreed():  # both have come here
            pass
    Path(folder, f"{rank}.json").write_text(json.dumps(said))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
