"""Data-parallel training is the same training: two processes end on the weights of one."""

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

SCRIPT = Path(__file__).with_name("ranks.py")


def assert_logs_agree(one: list[dict[str, float]], two: list[dict[str, float]]) -> None:
    """Every number but seconds: sums, extremes, shares, prices, and the tokens that a budget counted."""
    assert len(one) == len(two) == 4
    for alone, shared in zip(one, two, strict=True):
        assert alone.keys() == shared.keys()
        for name, value in alone.items():
            if not name.startswith(("time/", "throughput/", "sampler/")) and not name.endswith("/seconds"):
                assert shared[name] == pytest.approx(value, abs=2e-5, nan_ok=True), name
    assert one[-1]["budget"] == sum(row["rollouts/generated_tokens"] for row in one[:-1])
    assert one[0]["completions/length_min"] < one[0]["completions/length_max"]
    assert {row["rollouts/generated"] for row in one[:-1]} != {32.0}


def run_on_one_and_two(script: Path, policy: str, folder: Path, *more: str) -> None:
    root = script.parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    for ranks in (1, 2):
        command = [sys.executable, str(script), policy, str(folder), str(ranks), *more]
        subprocess.run(command, check=True, env=environment, cwd=root, timeout=300, capture_output=True)


@pytest.mark.slow
def test_supervised_steps_of_two_ranks_are_those_of_one(tiny, tmp_path):
    """One rank has the short answers, the other the long ones: every answer token weighs the same."""
    run_on_one_and_two(SCRIPT.with_name("sft_ranks.py"), tiny, tmp_path)
    one, two = (torch.load(tmp_path / f"sft-{ranks}.pt", weights_only=True) for ranks in (1, 2))
    assert largest_difference(one, two) < 2e-6
    assert largest_difference(one, Policy(tiny).load_model().state_dict()) > 1e-2
    losses = [float((tmp_path / f"sft-{ranks}.loss").read_text()) for ranks in (1, 2)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


@pytest.mark.slow
def test_two_ranks_take_the_steps_of_one(tiny, tmp_path):
    """Ranks have rows of different lengths, so different numbers of micro-batches; the step's normaliser is global."""
    run_on_one_and_two(SCRIPT, tiny, tmp_path)
    assert_logs_agree(*(json.loads((tmp_path / f"logs-{ranks}.json").read_text()) for ranks in (1, 2)))
    start = Policy(tiny).load_model().state_dict()
    for name in ("grpo", "reinforce_pp", "dapo"):
        one, two = (torch.load(tmp_path / f"{name}-{ranks}.pt", weights_only=True) for ranks in (1, 2))
        assert largest_difference(one, two) < 2e-6, name
        assert largest_difference(one, start) > 1e-3, name


def on_two(case: str, policy: str, folder: Path) -> list[str]:
    """What each of two processes was stopped by; "" where it ran to its end. None may wait for the other."""
    script = SCRIPT.with_name("guard_ranks.py")
    environment = {**os.environ, "PYTHONPATH": str(script.parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), policy, str(folder), case]
    subprocess.run(command, check=True, env=environment, cwd=script.parents[2], timeout=120, capture_output=True)
    return [(folder / f"{case}-{rank}.txt").read_text() for rank in (0, 1)]


@pytest.mark.slow
def test_the_guard_judges_the_tokens_of_all_ranks(tiny, tmp_path):
    """The second process samples from old weights: what is logged is by hand that of both, and both stop."""
    assert on_two("measured", tiny, tmp_path) == ["", ""]
    first, second = (torch.load(tmp_path / f"measured-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert len(first["differences"]) != len(second["differences"])  # else a mean of means would do
    assert first["differences"].mean() < 1e-5 and second["differences"].mean() > 1e-3
    both = torch.cat([first["differences"], second["differences"]]).double()
    for kept in (first, second):
        assert kept["logged"]["sampler/mismatch_mean"] == pytest.approx(both.mean().item(), rel=1e-5)
        assert kept["logged"]["sampler/mismatch_max"] == pytest.approx(both.max().item(), rel=1e-6)
    said = on_two("stopped", tiny, tmp_path)
    assert said[0] == said[1] and said[0].startswith("the sampler is not the policy: ")
    assert f"differ by {both.mean():.2g} nats on average (largest {both.max():.2f})" in said[0]


@pytest.mark.slow
def test_a_loss_that_is_no_number_on_one_rank_stops_all(tiny, tmp_path):
    """Its gradient is finite, so nothing else would tell the other process."""
    said = on_two("loss", tiny, tmp_path)
    assert said[0] == said[1] and said[0].startswith(
        "the loss is inf and the gradient norm nan on the batch of prompts"
    )
    assert said[0].count("sum/") == 4  # the prompts of both
