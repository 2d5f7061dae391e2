"""What fails on one process ends all of them, and none waits for the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from saerl_lightning.errors import InputError
from saerl_lightning.ranks import settings
from saerl_lightning.ranks.collectives import agreed, fail_together

SCRIPT = Path(__file__).with_name("agreement_ranks.py")
ROOT = Path(__file__).parents[2]

# Own error of the second process, and what the first one says of it.
EXPECTED = {
    "weights": ("ConnectionError: load: nobody answers", "it failed by ConnectionError('load: nobody answers')"),
    "sampling": (
        "ConnectionError: generate: nobody answers",
        "it failed by ConnectionError('generate: nobody answers')",
    ),
    "grading": ("InputError: the grader's key is wrong", "the grader's key is wrong"),
    "refill": ("ConnectionError: generate: nobody answers", "it failed by ConnectionError('generate: nobody answers')"),
    "validation": ("InputError: the grader's key is wrong", "the grader's key is wrong"),
    "model": ("InputError: no folder here", "no folder here"),
}


@pytest.mark.slow
def test_a_failure_of_one_process_ends_both(tiny, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), tiny, str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=ROOT, timeout=240, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first.keys() == second.keys() == EXPECTED.keys()
    for name, (own, told) in EXPECTED.items():
        assert second[name] == [own, own.startswith("InputError")], name  # a bug keeps its traceback
        assert first[name] == [f"RunStopped: process 1 of 0 to 1: {told}", True], name


def test_one_process_fails_by_its_own_error_alone():
    with pytest.raises(ZeroDivisionError), agreed():
        print(1 / 0)
    with pytest.raises(InputError) as raised:
        fail_together(InputError("wrong"))
    assert not raised.value.everywhere
    fail_together(None)


def test_settings_that_differ_are_named(monkeypatch):
    ours = "trainer: {max_steps: 3, devices: 2}\nmodel: {class_path: a.GRPOModule, init_args: {micro_tokens: 64}}\n"
    others = {
        ours.replace("64", "32"): "model.micro_tokens is 32 there and 64 here; start all alike",
        ours.replace("max_steps: 3", "max_steps: 4"): "trainer.max_steps is 4 there and 3 here; start all alike",
        ours.replace("a.GRPOModule", "b.SFTModule"): "model is SFTModule there and GRPOModule here; start all alike",
    }
    settings.require_same(ours, 1)
    for other, said in others.items():
        monkeypatch.setattr(settings, "gather_objects", lambda own, ranks, other=other: [own, own, other])
        with pytest.raises(InputError) as raised:
            settings.require_same(ours, 3)
        assert str(raised.value) == f"process 2 has other settings than process 0: {said}" and raised.value.everywhere
