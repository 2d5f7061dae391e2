"""Four steps over two shards at once, and two and two: `python sharded_resume_ranks.py POLICY FOLDER`.

Used by test_equal_ranks.py.
"""

from __future__ import annotations

import sys
import warnings
from functools import partial
from pathlib import Path

import torch

from saerl_lightning.policy.weights import whole
from saerl_lightning.ranks.sharded import ShardedStrategy
from saerl_lightning.training.checkpoints import RunCheckpoint
from tests.training.conftest import Sums, data, fit, module, trainer
from tests.training.equal_ranks import ByLength


def run(policy: str, folder: Path, name: str, steps: int, **how: str) -> None:
    saving = RunCheckpoint(dirpath=folder / name, save_last=True, save_top_k=0, enable_version_counter=False)
    adamw = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.0, fused=True)
    ours = module(policy, engine=ByLength(), micro_tokens=90, optimizer=adamw)
    strategy = ShardedStrategy(process_group_backend="gloo")
    on = trainer(folder, steps, (saving,), devices=2, strategy=strategy, enable_checkpointing=True)
    fit(ours, data(train=Sums(60)), on, **how)
    weights = {key: whole(value) for key, value in ours.model.state_dict().items()}
    if on.is_global_zero:
        torch.save(weights, folder / f"{name}-{steps}.pt")


def main(policy: str, folder: str) -> None:
    warnings.simplefilter("ignore")
    run(policy, Path(folder), "whole", 4)
    run(policy, Path(folder), "parted", 2)
    run(policy, Path(folder), "parted", 4, ckpt_path=str(Path(folder, "parted", "last.ckpt")))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
