"""A plan made on two processes, as a script: `python plan_on_ranks.py OUT`. Used by test_planned_pool.py.

The operation draws from a source that differs between processes, so a plan made on each would differ too.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

import numpy as np

from saerl_lightning.data.callback import Curriculum, Online
from saerl_lightning.data.module import PromptDataModule
from saerl_lightning.errors import InputError
from saerl_lightning.signals.random_signals import RandomSignals
from tests.data.served_prompts import CountingSignals, ListPrompts, Recorder, prompts, trainer


class ByProcess(Curriculum):
    """Ratings that depend on the process; without labels it refuses on the first process only."""

    def __init__(self, refuses: bool) -> None:
        self.refuses = refuses
        self.score = 0.0

    @property
    def needs_features(self) -> bool:
        return True

    def difficulty(self, plan, prompts, features):
        if self.refuses and rank() == 0:
            raise InputError("no prompt has the label 'difficulty'")
        self.score = float(rank() + 1)
        return RandomSignals(1, seed=rank()).features(prompts)[:, 0]

    def metrics(self):
        return {"score": self.score}


class ArrangesByProcess(Online):
    """Serves what is left in an order that depends on the process."""

    def revise(self, plan, served):
        rest = plan.rows[served:]
        return plan.go_on(served, np.random.default_rng([rank(), served]).permutation(rest))


def rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))


def main(out: str) -> None:
    warnings.simplefilter("ignore")
    told = {}
    for refuses in (False, True):
        data = PromptDataModule(
            ListPrompts(prompts(14)), batch_size=4, signals=CountingSignals(), curriculum=ByProcess(refuses)
        )
        run, module = trainer(devices=2, strategy="ddp"), Recorder()
        try:
            run.fit(module, datamodule=data)
            told |= {"plan": data.plan.rows.tolist(), "served": module.served, "metrics": data.metrics()}
            told["calls"] = data.signals.calls
        except InputError as error:
            told["refused"] = str(error)
    data = PromptDataModule(ListPrompts(prompts(14)), batch_size=4, online=ArrangesByProcess(), shuffle_seed=None)
    run, module = trainer(devices=2, strategy="ddp"), Recorder()
    run.fit(module, datamodule=data)
    told |= {"arranged": module.served}
    Path(out, f"{rank()}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1])
