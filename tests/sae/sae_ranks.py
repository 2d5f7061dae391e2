"""One SAE run over N processes, as a script: `python sae_ranks.py MODEL OUT N ARCHITECTURE`. Used by test_sae_module.py."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

from tests.sae.small_sae import DoubleSAEModule, data, module
from tests.training.conftest import fit, trainer

STEPS = 6


def main(model: str, out: str, ranks: int, architecture: str) -> None:
    warnings.simplefilter("ignore")
    sae = module(DoubleSAEModule, architecture=architecture, save_to=f"{out}-sae", dead_after=100)
    served = data(model)
    run = trainer(Path(out), STEPS, devices=ranks, strategy="ddp", log_every_n_steps=2)
    fit(sae, served, run)
    loader = served.train_dataloader()
    torch.save(
        {
            "weights": sae.sae.state_dict(),
            "activity": sae.activity.state_dict(),
            "scale": sae.scale,
            "batches": [loader.batch(step) for step in range(STEPS)],
            "first": loader.first(),
            "logged": {name: float(value) for name, value in run.callback_metrics.items()},
        },
        f"{out}.{run.global_rank}.pt",
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
