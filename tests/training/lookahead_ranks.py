"""Runs one step ahead over two processes, `python lookahead_ranks.py POLICY FOLDER STRATEGY`, for test_lookahead_ranks.py."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

import torch

from saerl_lightning.policy.weights import whole
from saerl_lightning.ranks.collectives import agreed
from tests.data.served_prompts import SaveEverywhere
from tests.training.equal_ranks import STRATEGIES
from tests.training.stale import CopyEngine, run


class SecondFails(CopyEngine):
    """Fails on the second process, at the third batch."""

    def generate(self, prompt_ids, sampling):
        third = sum(what == "sample" for what, _ in self.done) == 2
        if os.environ.get("LOCAL_RANK") == "1" and third and len(prompt_ids) > 1:
            raise ConnectionError("nobody answers")
        return super().generate(prompt_ids, sampling)


def main(policy: str, out: Path, strategy: str) -> None:
    """A whole run, one that goes on from its second step, and one whose second process fails."""
    warnings.simplefilter("ignore")
    chosen = STRATEGIES[strategy]

    def ran(name: str, *callbacks, **changes) -> None:
        limits = {"devices": 2, "strategy": chosen if isinstance(chosen, str) else chosen()}
        made, record = run(policy, out, 4, *callbacks, limits=limits, **changes)
        weights = {key: whole(value) for key, value in made.model.state_dict().items()}
        if made.trainer.is_global_zero:
            torch.save((weights, record.rows), out / f"{name}.pt")

    ran("whole", SaveEverywhere(out))
    ran("resumed", ckpt_path=out / "2-batch.ckpt")
    try:
        ran("failed", engine=SecondFails())
    except Exception as error:
        rank = os.environ.get("LOCAL_RANK", "0")
        Path(out, f"{rank}.json").write_text(json.dumps(f"{type(error).__name__}: {error}"))
    with agreed():  # both have come here
        pass
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
