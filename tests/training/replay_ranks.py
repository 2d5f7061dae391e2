"""Steps with replay over N processes: `replay_ranks.py POLICY FOLDER N`, for test_replay.py."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch

from saerl_lightning.training.replay.replay import Replay
from tests.training.conftest import Sums, data, fit, module, trainer
from tests.training.test_grpo_module import Record
from tests.training.test_replay import SETTINGS


def main(policy: str, out: Path, ranks: int) -> None:
    record = Record()
    grpo = module(policy, replay=Replay(size=10), micro_tokens=90, **SETTINGS)
    on = trainer(out, 4, (record,), devices=ranks, strategy="ddp" if ranks > 1 else "auto")
    fit(grpo, data(train=Sums(60)), on)
    if on.is_global_zero:
        torch.save(grpo.model.state_dict(), out / f"replay-{ranks}.pt")
        Path(out, f"replay-{ranks}.json").write_text(json.dumps(record.rows))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
