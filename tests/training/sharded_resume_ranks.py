"""Four steps over N shards at once, and two and two: `python sharded_resume_ranks.py POLICY FOLDER N`.

With a further number M, only the last two steps, from the checkpoint that M processes have saved. Used by
test_sharded_resume.py.
"""

from __future__ import annotations

import shutil
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


def run(policy: str, folder: Path, processes: int, name: str, steps: int, **how: str) -> None:
    saving = RunCheckpoint(dirpath=folder / name, save_last=True, save_top_k=0, enable_version_counter=False)
    adamw = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.0, fused=True)
    ours = module(policy, engine=ByLength(), micro_tokens=90, optimizer=adamw)
    strategy = ShardedStrategy(process_group_backend="gloo")
    on = trainer(folder, steps, (saving,), devices=processes, strategy=strategy, enable_checkpointing=True)
    fit(ours, data(train=Sums(60)), on, **how)
    weights = {key: whole(value) for key, value in ours.model.state_dict().items()}
    if on.is_global_zero:
        torch.save(weights, folder / f"{name}-{steps}.pt")
        if steps == 2:
            shutil.copytree((folder / name / "last.ckpt").resolve(), folder / f"saved-by-{processes}.ckpt")


def main(policy: str, folder: Path, processes: int, savers: int = 0) -> None:
    warnings.simplefilter("ignore")
    if savers:
        run(policy, folder, processes, f"from-{savers}", 4, ckpt_path=str(folder / f"saved-by-{savers}.ckpt"))
        return
    run(policy, folder, processes, f"whole-{processes}", 4)
    run(policy, folder, processes, f"parted-{processes}", 2)
    run(
        policy, folder, processes, f"parted-{processes}", 4, ckpt_path=str(folder / f"parted-{processes}" / "last.ckpt")
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
