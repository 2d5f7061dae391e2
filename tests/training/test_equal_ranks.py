"""Several processes are one: they draw the same completions, take the same steps, and log the same numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from saerl_lightning.policy.load import Policy
from tests.training.conftest import largest_difference

SCRIPT = Path(__file__).with_name("equal_ranks.py")
ROOT = Path(__file__).parents[2]
UNLIKE = ("time/", "throughput/")  # seconds


def ran(policy: str, folder: Path, *how: str, script: Path = SCRIPT) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), policy, str(folder), *how]
    done = subprocess.run(command, env=environment, cwd=ROOT, timeout=300, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def assert_equal(folder: Path, engine: str, strategy: str, policy: str) -> None:
    """Weights to 2e-6, and every number that is no time, for both objectives; prints the largest difference."""
    start = Policy(policy).load_model().state_dict()
    for name in ("grpo", "dapo"):
        one, two = (folder / f"{name}-{engine}-{each}" for each in ("one", strategy))
        weights = [torch.load(each.with_suffix(".pt"), weights_only=True) for each in (one, two)]
        apart = largest_difference(*weights)
        print(f"{name}, {engine}, {strategy}: largest weight difference to one process {apart:.2g}")
        assert apart < 2e-6, name
        assert largest_difference(weights[0], start) > 1e-3, name
        logs = [json.loads(each.with_suffix(".json").read_text()) for each in (one, two)]
        assert len(logs[0]) == len(logs[1]) == 4
        for alone, shared in zip(*logs, strict=True):
            assert alone.keys() == shared.keys()
            for key, value in alone.items():
                if not key.startswith(UNLIKE) and not key.endswith("/seconds"):
                    assert shared[key] == pytest.approx(value, abs=2e-5, nan_ok=True), (name, key)
        assert engine == "scripted" or logs[0][-1]["val/five/avg@3"] >= 0


@pytest.mark.slow
def test_two_processes_draw_what_one_draws(tiny, tmp_path):
    for strategy in ("one", "ddp"):
        ran(tiny, tmp_path, "hf", strategy)
    assert_equal(tmp_path, "hf", "ddp", tiny)


@pytest.mark.slow
@pytest.mark.vllm
def test_an_engine_of_vllm_in_each_process_draws_what_one_draws(tiny, tmp_path):
    """Closing an engine leaves the processes connected: a second run follows in each."""
    for strategy in ("one", "ddp", "sharded"):
        ran(tiny, tmp_path, "vllm", strategy)
    for strategy in ("ddp", "sharded"):
        assert_equal(tmp_path, "vllm", strategy, tiny)


def passes(folder: Path, name: str, strategy: str) -> list[list[list[int]]]:
    """Of each process: the number of micro-batches and of forward passes of every pass over a step's rows."""
    files = [folder / f"{name}-scripted-{strategy}-{rank}.counts" for rank in (0, 1)]
    return [json.loads(file.read_text()) for file in files]


@pytest.mark.slow
def test_shards_of_two_processes_take_the_steps_of_one(tiny, tmp_path):
    """The processes have unequal numbers of micro-batches, and make equally many forward passes."""
    for strategy in ("one", "sharded", "last"):
        ran(tiny, tmp_path, "scripted", strategy)
    for strategy in ("sharded", "last"):
        assert_equal(tmp_path, "scripted", strategy, tiny)
        for name in ("grpo", "dapo"):
            first, second = passes(tmp_path, name, strategy)
            assert (
                [made for _, made in first]
                == [made for _, made in second]
                == [max(pair) for pair in zip([own for own, _ in first], [own for own, _ in second], strict=True)]
            )
            assert [own for own, _ in first] != [own for own, _ in second], name
