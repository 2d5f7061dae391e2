"""One run with dynamic sampling over N processes: `python dynamic_sampling_ranks.py POLICY FOLDER N`.

Used by test_dynamic_sampling.py.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

from saerl_lightning.training.rounds.dynamic_sampling import DynamicSampling
from tests.training.conftest import Sums, data, fit, module, trainer
from tests.training.ranks import TEXTS, ByPrompt
from tests.training.test_dynamic_sampling import SomeNeverVary, Witness


def main(policy: str, folder: str, ranks: int) -> None:
    warnings.simplefilter("ignore")
    reward = SomeNeverVary()
    grpo = module(
        policy,
        engine=ByPrompt(TEXTS),
        rewards=[reward],
        dynamic_sampling=DynamicSampling(),
        micro_tokens=90,
    )
    witness = Witness(Path(folder))
    run = trainer(Path(folder), 3, (witness,), devices=ranks, strategy="ddp" if ranks > 1 else "auto")
    fit(grpo, data(train=Sums(60)), run)
    result = {
        "weights": grpo.model.state_dict(),
        "rows": [step.batch.rows for step in witness.steps],
        "generated": reward.graded,
    }
    torch.save(result, Path(folder) / f"{ranks}-{run.global_rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
