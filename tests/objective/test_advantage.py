"""Advantages worked by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saerl_lightning.objective import advantage

NAN = float("nan")
REWARDS = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [1.0, NAN, 0.0, NAN]])


def assert_close(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected))


def test_group_advantages():
    """Four rewards of mean 1/2: squares add up to 1, n - 1 is 3. Two rewards: squares add up to 1/2."""
    four, two = 0.5 / (math.sqrt(1 / 3) + 1e-4), 0.5 / (math.sqrt(1 / 2) + 1e-4)
    assert_close(advantage.group_advantages(REWARDS), [[four, -four, -four, four], [0.0] * 4, [two, 0.0, -two, 0.0]])
    raw = advantage.group_advantages(REWARDS, scale_by_std=False)
    assert_close(raw, [[0.5, -0.5, -0.5, 0.5], [0.0] * 4, [0.5, 0.0, -0.5, 0.0]])


def test_leave_one_out():
    """A 1 beside 0, 0, 1 has 1 - 1/3; a 1 beside 0 alone has 1 - 0."""
    found = advantage.leave_one_out_advantages(REWARDS)
    assert_close(found, [[2 / 3, -2 / 3, -2 / 3, 2 / 3], [0.0] * 4, [1.0, 0.0, -1.0, 0.0]])


def test_batch_advantages():
    """Ten graded rewards, seven of them 1: mean 0.7, squares 7 * 0.09 + 3 * 0.49 = 2.1, n - 1 is 9."""
    std = math.sqrt(2.1 / 9)
    one, zero = 0.3 / std, -0.7 / std
    assert_close(advantage.batch_advantages(REWARDS), [[one, zero, zero, one], [one] * 4, [one, 0.0, zero, 0.0]])


def test_group_then_batch():
    """Centred rewards: six of 1/2 in size, four 0: squares add up to 1.5, n - 1 is 9."""
    a = 0.5 / math.sqrt(1.5 / 9)
    found = advantage.group_then_batch_advantages(REWARDS)
    assert_close(found, [[a, -a, -a, a], [0.0] * 4, [a, 0.0, -a, 0.0]])


def test_beta_density_by_hand():
    """Success rates 1/4, 1/2, 3/4: mean 1/2, variance 1/16, so a = b = 3/2 and alpha = beta = 3/2.

    B(3/2, 3/2) = pi / 8, so the density is (8 / pi) sqrt(p (1 - p)).
    """
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
    quarter, half = 8 / math.pi * math.sqrt(3) / 4, 8 / math.pi / 2
    expected = [
        [0.75 / quarter, *[-0.25 / quarter] * 3],
        [*[0.5 / half] * 2, *[-0.5 / half] * 2],
        [*[0.25 / quarter] * 3, -0.75 / quarter],
    ]
    assert_close(advantage.beta_advantages(rewards), expected)


@given(st.lists(st.integers(0, 8), min_size=2, max_size=6), st.integers(0, 2**31))
def test_beta_advantages_are_those_of_the_authors_steps(successes, seed):
    """The same by torch's own Beta distribution, as the authors compute it; groups that all succeed or fail get 0."""
    g = torch.Generator().manual_seed(seed)
    rewards = torch.stack([(torch.randperm(8, generator=g) < s).double() for s in successes])
    p = rewards.mean(1)
    found = advantage.beta_advantages(rewards)
    if p.var() < 1e-12:
        torch.testing.assert_close(found, rewards - p[:, None])
        return
    size = p.mean() * (1 - p.mean()) / p.var() - 1
    alpha, beta = (1 + size * p.mean() / 3).clamp(min=1), (1 + size * (1 - p.mean()) / 3).clamp(min=1)
    weight = (1 / torch.distributions.Beta(alpha, beta).log_prob(p).exp()).clamp(max=1e6)
    torch.testing.assert_close(found, weight[:, None] * (rewards - p[:, None]))
    assert found.isfinite().all()


@pytest.mark.parametrize("value", [0.1, 0.7, 1e-3, 1 / 3])
def test_equal_rewards_are_exactly_zero(value):
    """Float32 means of equal numbers need not be that number; such a group still must not reach the policy."""
    rewards = torch.full((2, 7), value)
    others = torch.rand(2, 7)
    for by_group in (
        advantage.group_advantages,
        advantage.leave_one_out_advantages,
        advantage.group_then_batch_advantages,
        advantage.beta_advantages,
    ):
        assert by_group(torch.cat([rewards, others]))[:2].eq(0).all()
        assert by_group(rewards).eq(0).all()


def test_where_the_density_is_next_to_nothing_the_weight_is_a_million():
    """Two hundred groups of success rates 0.49 and 0.51, and one of 0.01, where the fitted density is below 1e-6."""
    rewards = torch.zeros(201, 100)
    rewards[:200, :49] = 1.0
    rewards[:100, 49:51] = 1.0
    rewards[200, 0] = 1.0
    found = advantage.beta_advantages(rewards)[200]
    torch.testing.assert_close(found[:2], torch.tensor([0.99e6, -0.01e6]), rtol=1e-7, atol=0.02)
