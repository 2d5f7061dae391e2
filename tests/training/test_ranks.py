"""Data-parallel training is the same training: two processes end on the weights of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from saerl_lightning.policy.load import Policy
from tests.training.conftest import largest_difference

SCRIPT = Path(__file__).with_name("ranks.py")


@pytest.mark.slow
def test_two_ranks_take_the_steps_of_one(tiny, tmp_path):
    """Ranks have rows of different lengths, so different numbers of micro-batches; the step's normaliser is global."""
    root = SCRIPT.parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    for ranks in (1, 2):
        command = [sys.executable, str(SCRIPT), tiny, str(tmp_path), str(ranks)]
        subprocess.run(command, check=True, env=environment, cwd=root, timeout=300, capture_output=True)
    start = Policy(tiny).load_model().state_dict()
    for name in ("grpo", "reinforce_pp", "dapo"):
        one, two = (torch.load(tmp_path / f"{name}-{ranks}.pt", weights_only=True) for ranks in (1, 2))
        assert largest_difference(one, two) < 2e-6, name
        assert largest_difference(one, start) > 1e-3, name
