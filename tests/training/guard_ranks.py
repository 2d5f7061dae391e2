"""Two runs over two processes, of which the second samples from old weights: `python guard_ranks.py POLICY FOLDER CASE`.

CASE `measured` lets the run go on and keeps what the guard saw; `stopped` is a run at the default threshold; `loss` is a run
whose second process alone has a loss that is no number. Used by test_ranks.py.
"""

from __future__ import annotations

import copy
import os
import sys
import warnings
from pathlib import Path
from typing import ClassVar

import torch

from saerl_lightning.errors import RunStopped
from saerl_lightning.objective.grpo import GRPO
from saerl_lightning.rollout.hf import HFEngine
from saerl_lightning.training.guard import MismatchGuard
from tests.training.conftest import data, fit, module, trainer
from tests.training.test_grpo_module import Record


class StaleOnTheSecond(HFEngine):
    """Samples from the weights it was started with, on the second process."""

    def start(self, model, tokenizer, max_model_len):
        super().start(copy.deepcopy(model) if os.environ.get("LOCAL_RANK") == "1" else model, tokenizer, max_model_len)

    def load_weights(self, named_tensors, version):
        super().load_weights([], version)


class InfiniteOnTheSecond(GRPO):
    """A loss without a gradient that is infinite, on the second process."""

    def __call__(self, inputs):
        loss, terms = super().__call__(inputs)
        return loss + (torch.inf if os.environ.get("LOCAL_RANK") == "1" else 0.0), terms


class Keeping(MismatchGuard):
    """Keeps the differences of each step's tokens, of this process."""

    kept: ClassVar[list[torch.Tensor]] = []

    def check(self, policy, sampler, mask, *more):
        self.kept.append((policy - sampler).abs()[mask])
        return super().check(policy, sampler, mask, *more)


def main(policy: str, folder: str, case: str) -> None:
    warnings.simplefilter("ignore")
    rank, record = os.environ.get("LOCAL_RANK", "0"), Record()
    changes = {
        "measured": {"engine": StaleOnTheSecond(fused=False), "guard": Keeping(100.0)},
        "stopped": {"engine": StaleOnTheSecond(fused=False)},
        "loss": {"objective": InfiniteOnTheSecond()},
    }[case]
    run = trainer(Path(folder), 2, (record,), devices=2, strategy="ddp")
    said = ""
    try:
        fit(module(policy, **changes), data(), run)
    except RunStopped as stopped:
        said = str(stopped)
    Path(folder, f"{case}-{rank}.txt").write_text(said)
    if case == "measured":
        torch.save({"differences": Keeping.kept[-1], "logged": record.rows[-1]}, Path(folder, f"{case}-{rank}.pt"))
    # gloo aborts a process that leaves while the other one is still speaking to it.
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
