"""One step ahead on several processes: they take the steps of one, resume on the same bits, and fail together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.training.conftest import largest_difference, weights
from tests.training.stale import run
from tests.training.test_equal_ranks import ran

SCRIPT = Path(__file__).with_name("lookahead_ranks.py")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "sharded"])
def test_two_processes_are_one(tiny, tmp_path, strategy):
    """A checkpoint of two processes whose weights are in one file goes on in one process, too."""
    ran(tiny, tmp_path, strategy, script=SCRIPT)
    one, record = run(tiny, tmp_path, 4)
    (whole, rows), (resumed, rest) = (torch.load(tmp_path / f"{name}.pt") for name in ("whole", "resumed"))
    print(f"{strategy}: largest weight difference to one process {largest_difference(whole, weights(one)):.2g}")
    assert largest_difference(whole, weights(one)) < 2e-6
    assert largest_difference(whole, resumed) == 0
    assert [row["rollouts/staleness"] for row in rows] == [0, 1, 1, 1]
    for ours, theirs in zip([*rows, *rest], [*record.rows, *record.rows[2:]], strict=True):
        for name in (
            "reward/mean",
            "loss",
            "completions/length_mean",
            "rollouts/staleness/max",
            "policy/correction_mean",
        ):
            assert ours[name] == pytest.approx(theirs[name], abs=2e-5), name
    said = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert said[1] == "ConnectionError: nobody answers"
    assert said[0] == "RunStopped: process 1 of 0 to 1: it failed by ConnectionError('nobody answers')"
    if strategy == "ddp":
        on, _ = run(tiny, tmp_path, 4, ckpt_path=tmp_path / "2-batch.ckpt")
        assert largest_difference(weights(on), whole) < 2e-6
