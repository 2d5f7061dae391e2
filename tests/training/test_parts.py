"""The small parts of a step: micro-batches, metrics, phases, warm-up, random states, references."""

from __future__ import annotations

import math
import random
from itertools import groupby
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saerl_lightning.errors import InputError, RunStopped
from saerl_lightning.records import Rollouts
from saerl_lightning.training.grading import entropy_floor
from saerl_lightning.training.metrics import Phases, group_metrics, length_metrics, reward_metrics
from saerl_lightning.training.optimization import Gradients, clip_gradients, not_finite, require_same_optimiser, warm_up
from saerl_lightning.training.rng import random_states, restore_random_states
from saerl_lightning.training.rows import Cut, StepRows, packed_cut, padded_cut

NAN = float("nan")


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 200))
def test_micro_batches_cover_every_row_within_the_budget(lengths, budget):
    groups = padded_cut(range(len(lengths)), lengths, budget)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[r] for r in group) <= budget
    widths = [max(lengths[r] for r in group) for group in groups]
    assert widths == sorted(widths, reverse=True)


def test_micro_batches_by_hand():
    assert padded_cut(range(4), [3, 9, 4, 9], 18) == [[1, 3], [2, 0]]
    assert padded_cut(range(4), [3, 9, 4, 9], 18, by_length=False) == [[0, 1], [2, 3]]
    assert padded_cut([0], [5], 2) == [[0]]


def test_packed_micro_batches_by_hand():
    """Prompts of 5, 2 and 4 tokens with two completions each: groups of 11, 8 and 6 tokens."""
    prompts, starts, lengths = [0, 0, 1, 1, 2, 2], [5, 5, 2, 2, 4, 4], [7, 9, 5, 5, 5, 5]
    cut = lambda budget, **how: packed_cut(range(6), prompts, starts, lengths, budget, **how)  # noqa: E731
    assert cut(100) == [[0, 1, 2, 3, 4, 5]]
    assert cut(17) == [[0, 1, 4, 5], [2, 3]]  # 11 + 6, 8
    assert cut(17, by_length=False) == [[0, 1], [2, 3, 4, 5]]
    assert cut(9) == [[1], [2, 3], [0], [4, 5]]  # the first group in two pieces of 7 and 9
    assert cut(1) == [[1], [0], [2], [3], [4], [5]]


@given(st.data())
def test_packed_micro_batches_cover_every_row_within_the_budget(data):
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    prompts = [p for p, size in enumerate(sizes) for _ in range(size)]
    starts = [data.draw(st.integers(1, 9), label=f"prompt {p}") for p in range(len(sizes))]
    lengths = [starts[p] + data.draw(st.integers(1, 20)) for p in prompts]
    budget = data.draw(st.integers(1, 90))
    groups = packed_cut(
        range(len(prompts)), prompts, [starts[p] for p in prompts], lengths, budget, data.draw(st.booleans())
    )
    assert sorted(row for group in groups for row in group) == list(range(len(prompts)))
    for group in groups:
        own = sum(lengths[r] - starts[prompts[r]] for r in group)
        assert len(group) == 1 or own + sum(starts[p] for p in {prompts[r] for r in group}) <= budget
        neighbours = [prompt for prompt, _ in groupby(prompts[r] for r in group)]
        assert len(neighbours) == len(set(neighbours))


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
    groups = group_metrics(total, tokens=8)
    assert groups == {"groups/zero_variance_frac": 0.5, "groups/effective": 1, "groups/tokens_per_effective": 8.0}
    assert math.isnan(group_metrics(torch.ones(2, 2), 8)["groups/tokens_per_effective"])
    lengths = length_metrics(rollouts().completion_lengths, rollouts().truncated)
    assert lengths["completions/length_mean"] == 2
    assert lengths["completions/terminated_length_mean"] == pytest.approx(5 / 3)
    assert lengths["completions/truncated_frac"] == 0.25


def laid_out(trained=(True, True, True, True), advantages=((1.0, 1.0), (1.0, 1.0)), skip=False) -> StepRows:
    step = StepRows.from_rollouts(rollouts(), torch.tensor(trained), 8, torch.device("cpu"))
    return step.with_advantages(torch.tensor(advantages), skip, lambda counts: counts)


@pytest.mark.parametrize("cut", [Cut(6), Cut(8, packed=True)])
def test_step_rows_leave_failed_rows_out_of_the_normaliser(cut):
    step = laid_out(trained=(True, False, True, True))
    assert (step.step_rows, step.step_tokens, step.scored_tokens) == (3.0, 5.0, 5.0)
    assert step.mask.any(1).tolist() == [True, False, True, True]
    micro_batches = step.micro_batches(cut)
    assert len(micro_batches) > 1
    assert sorted(row for rows in micro_batches for row in rows) == [0, 2, 3]


def test_rows_without_advantage_are_skipped_and_still_counted():
    step = laid_out(advantages=((0.0, 0.0), (1.0, -1.0)), skip=True)
    assert step.scored == [2, 3]
    assert (step.step_rows, step.step_tokens, step.scored_tokens) == (4.0, 8.0, 3.0)
    assert step.scored_mask.sum() == 3
    assert laid_out(advantages=((0.0, 0.0), (0.0, 0.0)), skip=True).scored == [0]  # the shortest: gradients are zeros
    assert laid_out(advantages=((0.0, 0.0), (0.0, 0.0)), skip=False).scored == [0, 1, 2, 3]


def test_rows_of_a_micro_batch_are_cut_off_behind_the_longest():
    """Lengths 4, 5, 4 and 5 of two prompts of 2 and 3 tokens; rows 2 and 0 are of other groups."""
    step = laid_out(advantages=((0.5, 1.0), (-2.0, 3.0)))
    rows = step.of_rows([2, 0])
    assert rows.tokens.tolist() == [[1, 2, 3, 0], [1, 2, 0, 1]]
    assert rows.own.tolist() == rows.mask.tolist() == [[False, False, False, True], [False, False, True, True]]
    assert (rows.prompts.tolist(), rows.starts, rows.lengths) == ([1, 0], [3, 2], [4, 4])
    assert rows.sampler_logprobs.tolist() == [[0, 0, 0, -1], [0, 0, -1, -1]]
    assert rows.advantages.tolist() == [-2.0, 0.5]
    assert (rows.step_rows, rows.step_tokens, rows.scored_tokens) == (4.0, 8.0, 8.0)
    assert rows.mean(torch.tensor([[9.0, 9.0, 9.0, 2.0], [9.0, 9.0, 4.0, 2.0]])) == 1.0


def test_old_logprobs_are_those_of_the_first_update_and_no_record_is_written_into():
    step = laid_out()
    micro_batches, old = step.micro_batches(Cut(6)), []
    for rows in map(step.of_rows, micro_batches):
        values = torch.full(rows.tokens.shape, -1.0).masked_fill(~rows.own, 0.0)
        old.append(rows.inputs(values, values).old_logprobs)
    assert step.old_logprobs is None and len(old) > 1
    step = step.with_old(step.joined(micro_batches, old))
    assert step.old_logprobs.tolist() == (-1.0 * step.own).tolist()
    for rows in map(step.of_rows, micro_batches):
        values = torch.full(rows.tokens.shape, -2.0)
        assert rows.inputs(values, values).old_logprobs[rows.mask].eq(-1.0).all()
    assert step.old_logprobs.tolist() == (-1.0 * step.own).tolist()


def test_the_entropy_floor_is_a_quantile_of_the_mask():
    entropy = torch.tensor([[9.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
    mask = torch.tensor([[False, True, True], [True, True, True]])
    assert entropy_floor(entropy, mask, 0.4, ranks=1) == pytest.approx(3.4)  # of 1 to 5
    assert entropy_floor(entropy, mask, 1.0, ranks=1) == -math.inf


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


@pytest.mark.parametrize("gradient", [NAN, math.inf, -math.inf])
def test_no_step_on_what_is_no_number(gradient):
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([1.0, gradient])
    trainer = SimpleNamespace(precision_plugin=object())
    with pytest.raises(RunStopped, match="a, b") as stopped:
        Gradients().prepare(trainer, torch.optim.SGD([parameter]), 1.0, lambda norm: not_finite(1.0, norm, ["a", "b"]))
    assert stopped.value.everywhere  # all ranks have the same norm, and one of them says so


def saved_by(optimizer: torch.optim.Optimizer) -> dict:
    return {"optimizer_states": [optimizer.state_dict()], "lr_schedulers": []}


def test_what_another_optimiser_or_model_learned_is_refused():
    weights = [torch.nn.Parameter(torch.ones(shape)) for shape in ((2, 3), (4,))]
    optimizer = torch.optim.AdamW(weights)
    sum(weight.sum() for weight in weights).backward()
    optimizer.step()
    require_same_optimiser(saved_by(optimizer), torch.optim.AdamW, False, weights)
    for other, count, why in [
        (torch.optim.SGD, weights, "is of another optimiser: of each weight it keeps .*exp_avg"),
        (torch.optim.AdamW, weights[:1], "trains 2 weights, and this run 1"),
        (torch.optim.AdamW, [weights[0].T, weights[1]], r"exp_avg of weight 0 is \(2, 3\), and the weight \(3, 2\)"),
        (torch.optim.AdamW, weights[::-1], r"exp_avg of weight 0 is \(2, 3\), and the weight \(4,\)"),
    ]:
        with pytest.raises(InputError, match=why):
            require_same_optimiser(saved_by(optimizer), other, False, count)
    with pytest.raises(InputError, match="has no schedule of the learning rate, and this run has one"):
        require_same_optimiser(saved_by(optimizer), torch.optim.AdamW, True, weights)


def test_phases_add_up_their_seconds_and_call_their_listener():
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
