"""Four steps of some cases over N processes: `case_ranks.py POLICY FOLDER N CASE...`.

Each saves the weights, and what was logged. Used by test_rounds.py and test_replay.py.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch

from saerl_lightning.training.replay.replay import Replay
from tests.training.conftest import Sums, data, fit, module, trainer
from tests.training.test_dynamic_sampling import SomeNeverVary
from tests.training.test_grpo_module import Record
from tests.training.test_replay import SETTINGS
from tests.training.test_rounds import CASES, SMALL


def settings(name: str) -> dict[str, object]:
    """What a case sets of the module."""
    if name == "replay":
        return {"replay": Replay(size=10), **SETTINGS}
    rounds = CASES[name]()
    if name == "knapsack":
        rates = {prompt.uid: (0.1, 0.5, 0.9)[i % 3] for i, prompt in enumerate(Sums(60).load()) if i % 4}
        rounds.load_state_dict = lambda state: rounds._rates.update(rates)
    return {"rewards": [SomeNeverVary()], "sampling": SMALL, "dynamic_sampling": rounds}


def run(policy: str, out: Path, ranks: int, name: str) -> None:
    record = Record()
    grpo = module(policy, micro_tokens=90, **settings(name))
    on = trainer(out, 4, (record,), devices=ranks, strategy="ddp" if ranks > 1 else "auto")
    fit(grpo, data(train=Sums(60)), on)
    if on.is_global_zero:
        torch.save(grpo.model.state_dict(), out / f"{name}-{ranks}.pt")
        Path(out, f"{name}-{ranks}.json").write_text(json.dumps(record.rows))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for each in sys.argv[4:]:
        run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), each)
