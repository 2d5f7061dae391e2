"""Supervised steps over N processes, as a script: `python sft_ranks.py POLICY FOLDER N`. Used by test_ranks.py."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

from saerl_lightning.policy.load import Policy
from saerl_lightning.prompts.source import PromptSource
from saerl_lightning.records import Prompt
from saerl_lightning.rollout.hf import HFEngine
from saerl_lightning.training.sft import SFTModule
from tests.training.conftest import ParityReward, data, fit, sgd, trainer


class Unequal(PromptSource):
    """Every second answer is nine times as long: of two ranks one has the short ones, the other the long ones."""

    def load(self) -> list[Prompt]:
        chat = [({"role": "user", "content": f"{i}+1="},) for i in range(12)]
        return [Prompt(f"p{i}", chat[i], "3" if i % 2 else "1 2 3 4 5") for i in range(12)]


def main(policy: str, out: str, ranks: int) -> None:
    warnings.simplefilter("ignore")
    module = SFTModule(Policy(policy), HFEngine(), [ParityReward()], optimizer=sgd)
    run = trainer(Path(out), 3, devices=ranks, strategy="ddp" if ranks > 1 else "auto")
    fit(module, data(train=Unequal(), shuffle_seed=None), run)
    if run.is_global_zero:
        torch.save(module.model.state_dict(), Path(out, f"sft-{ranks}.pt"))
        Path(out, f"sft-{ranks}.loss").write_text(str(float(run.callback_metrics["loss"])))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
