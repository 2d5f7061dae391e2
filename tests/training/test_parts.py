"""The small parts of a step: micro-batches, metrics, phases, warm-up, random states, references."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saerl_lightning.errors import RunStopped
from saerl_lightning.records import Rollouts
from saerl_lightning.training.micro_batches import micro_batches
from saerl_lightning.training.optimization import clip_gradients, require_finite, warm_up
from saerl_lightning.training.phases import Phases
from saerl_lightning.training.report import MetricSum, completion_metrics, group_metrics, reward_metrics
from saerl_lightning.training.rng import random_states, restore_random_states
from saerl_lightning.training.step import StepRows

NAN = float("nan")


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 200))
def test_micro_batches_cover_every_row_within_the_budget(lengths, budget):
    groups = micro_batches(lengths, budget)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[r] for r in group) <= budget
    widths = [max(lengths[r] for r in group) for group in groups]
    assert widths == sorted(widths, reverse=True)


def test_micro_batches_by_hand():
    assert micro_batches([3, 9, 4, 9], 18) == [[1, 3], [2, 0]]
    assert micro_batches([5], 2) == [[0]]


def rollouts(lengths=(2, 3, 1, 2), truncated=(False, True, False, False)) -> Rollouts:
    prompts = [[1, 2], [1, 2, 3]]
    completions = [list(range(n)) for n in lengths]
    return Rollouts.pack(prompts, completions, [[-1.0] * n for n in lengths], truncated, ["x"] * 4, 2, version=0)


def test_rewards_groups_and_completions_by_hand():
    total = torch.tensor([[1.0, 0.0], [1.0, NAN]])
    rewards = reward_metrics({"math": total}, total)
    assert rewards["reward/mean"] == pytest.approx(2 / 3)
    assert rewards["reward/std"] == pytest.approx(math.sqrt(1 / 3))
    assert rewards["reward/math/failed_frac"] == 0.25
    groups = group_metrics(total, rollouts())
    assert groups == {"groups/zero_variance_frac": 0.5, "groups/effective": 1, "groups/tokens_per_effective": 8.0}
    assert math.isnan(group_metrics(torch.ones(2, 2), rollouts())["groups/tokens_per_effective"])
    lengths = completion_metrics(rollouts())
    assert lengths["completions/length_mean"] == 2
    assert lengths["completions/terminated_length_mean"] == pytest.approx(5 / 3)
    assert lengths["completions/truncated_frac"] == 0.25


def test_metrics_of_micro_batches_add_up():
    total = MetricSum()
    for mean, low, high in ((0.25, 0.9, 1.1), (0.5, 0.8, 1.0)):
        values = {"kl": mean, "ratio/min": low, "ratio/max": high}
        total.add({name: torch.tensor(value) for name, value in values.items()}, scale=0.5)
    assert {k: round(float(v), 6) for k, v in total.values.items()} == {"kl": 0.375, "ratio/min": 0.8, "ratio/max": 1.1}


def test_step_rows_leave_failed_rows_out_of_the_normaliser():
    rewards = torch.tensor([[1.0, NAN], [0.0, 1.0]])
    step = StepRows.collect(rollouts(), rewards, torch.ones(2, 2), lambda x: x, torch.device("cpu"))
    assert (step.step_rows, step.step_tokens) == (3.0, 5.0)
    assert step.mask.any(1).tolist() == [True, False, True, True]
    assert [m.last for m in step.micro_batches(6)] == [False] * (len(list(step.micro_batches(6))) - 1) + [True]


def test_old_logprobs_are_those_of_the_first_update():
    step = StepRows.collect(rollouts(), torch.ones(2, 2), torch.ones(2, 2), lambda x: x, torch.device("cpu"))
    for update, value in enumerate((-1.0, -2.0)):
        for micro in step.micro_batches(6):
            inputs = step.inputs(micro, torch.full(micro.tokens.shape, value), first_update=update == 0)
            assert inputs.old_logprobs[micro.mask].eq(-1.0).all()


def test_warm_up_scales_and_puts_back():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.8)
    seen = []
    for step in range(6):
        with warm_up(optimizer, step, warmup_steps=4):
            seen.append(optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert optimizer.param_groups[0]["lr"] == 0.8


def test_clipping_returns_the_norm_before():
    parameter = torch.nn.Parameter(torch.zeros(2))
    for limit, after in ((None, 5.0), (1.0, 1.0)):
        parameter.grad = torch.tensor([3.0, 4.0])
        assert clip_gradients([parameter], limit) == pytest.approx(5.0)
        assert parameter.grad.norm().item() == pytest.approx(after, abs=1e-5)


@pytest.mark.parametrize(("loss", "norm"), [(NAN, 1.0), (1.0, math.inf), (-math.inf, 1.0)])
def test_no_step_on_what_is_no_number(loss, norm):
    with pytest.raises(RunStopped, match="a, b"):
        require_finite(loss, norm, ["a", "b"])


def test_phases_add_up_and_tell():
    phases, told = Phases(), []
    phases.listener = told.append
    for name in ("forward", "backward", "forward"):
        with phases(name):
            pass
    assert told == ["forward", "backward", "forward"]
    assert phases.drain().keys() == {"forward", "backward"}
    assert phases.drain() == {}


def test_random_states_go_through_a_safe_checkpoint(tmp_path):
    torch.save(random_states(), tmp_path / "states.pt")
    draw = lambda: (random.random(), np.random.rand(), torch.rand(1).item(), random.gauss(0, 1))  # noqa: E731, NPY002
    first = draw()
    restore_random_states(torch.load(tmp_path / "states.pt", weights_only=True))
    assert draw() == first
