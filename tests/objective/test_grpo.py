"""GRPO on numbers worked by hand, and the invariance of its gradient to how a step is split."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saerl_lightning.errors import InputError
from saerl_lightning.objective import surrogate
from saerl_lightning.objective.advantage import group_advantages
from saerl_lightning.objective.grpo import GRPO
from saerl_lightning.objective.objective import LossInputs

NAN = float("nan")


def test_advantages_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [1.0, NAN, 0.0, NAN]])
    std = math.sqrt(1 / 3)  # four rewards, mean 1/2, squares sum to 1, n - 1 = 3
    pair = math.sqrt(1 / 2)
    expected = torch.tensor(
        [
            [0.5 / (std + 1e-4), -0.5 / (std + 1e-4), -0.5 / (std + 1e-4), 0.5 / (std + 1e-4)],
            [0.0] * 4,
            [0.5 / (pair + 1e-4), 0.0, -0.5 / (pair + 1e-4), 0.0],
        ]
    )
    torch.testing.assert_close(group_advantages(rewards), expected)
    torch.testing.assert_close(group_advantages(rewards, scale_by_std=False)[0], torch.tensor([0.5, -0.5, -0.5, 0.5]))


def test_one_valid_reward_gives_no_advantage():
    assert group_advantages(torch.tensor([[1.0, NAN], [NAN, NAN]])).eq(0).all()


def test_clipped_surrogate_by_hand():
    ratio = torch.tensor([[0.5, 1.5], [0.5, 1.5]])
    gain = surrogate.clipped_surrogate(ratio, torch.tensor([2.0, -2.0]), low=0.2, high=0.3)
    torch.testing.assert_close(gain, torch.tensor([[1.0, 2.6], [-1.6, -3.0]]))
    low, high = surrogate.clipped(ratio, torch.tensor([2.0, -2.0]), low=0.2, high=0.3)
    assert low.tolist() == [[0, 0], [1, 0]]
    assert high.tolist() == [[0, 1], [0, 0]]


def test_kl_estimators_by_hand():
    logp, ref = torch.tensor([[math.log(0.5)]]), torch.tensor([[math.log(0.25)]])
    assert surrogate.kl_k1(logp, ref).item() == pytest.approx(math.log(2))
    assert surrogate.kl_k2(logp, ref).item() == pytest.approx(math.log(2) ** 2 / 2)
    assert surrogate.kl_k3(logp, ref).item() == pytest.approx(0.5 - 1 + math.log(2))


@given(st.lists(st.floats(0.01, 0.99), min_size=2, max_size=6), st.lists(st.floats(0.01, 0.99), min_size=6, max_size=6))
def test_kl_estimates_have_the_right_mean(p, q):
    """Under the policy's own distribution k1 and k3 average to the exact KL."""
    p, q = (torch.tensor(x[: len(p)], dtype=torch.float64) for x in (p, q))
    p, q = (x / x.sum() for x in (p, q))
    exact = (p * (p / q).log()).sum()
    for estimator in (surrogate.kl_k1, surrogate.kl_k3):
        torch.testing.assert_close((p * estimator(p.log()[None], q.log()[None])[0]).sum(), exact)


def inputs(rows=8, width=6, seed=0, reference=True):
    g = torch.Generator().manual_seed(seed)
    draw = lambda: -torch.rand(rows, width, generator=g, dtype=torch.float64)  # noqa: E731
    lengths = torch.randint(1, width + 1, (rows, 1), generator=g)
    mask = torch.arange(width)[None] < lengths
    return dict(
        logprobs=draw().requires_grad_(),
        old_logprobs=draw(),
        sampler_logprobs=draw(),
        mask=mask,
        advantages=torch.randn(rows, generator=g, dtype=torch.float64),
        reference=draw() if reference else None,
        step_rows=float(rows),
        step_tokens=float(mask.sum()),
    )


def part(fields, rows):
    whole = ("step_rows", "step_tokens")
    return LossInputs(**{k: v if k in whole or v is None else v[rows] for k, v in fields.items()})


def test_loss_by_hand():
    """Two rows of one and two tokens, ratio 1: the loss is minus the mean of the advantages, whatever the lengths."""
    logp = torch.tensor([[-1.0, 0.0], [-2.0, -3.0]])
    mask = torch.tensor([[True, False], [True, True]])
    loss, metrics = GRPO()(LossInputs(logp, logp, logp, mask, torch.tensor([3.0, -1.0]), None, 2.0, 3.0))
    assert loss.item() == pytest.approx(-1.0)
    assert metrics["policy/ratio_mean"].item() == pytest.approx(1.0)


def test_importance_cap_weighs_tokens():
    """pi_old / pi_sampler of e and 1/e: the first is capped at 2, the second kept."""
    old = torch.tensor([[0.0, 0.0]])
    sampler = torch.tensor([[-1.0, 1.0]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss, _ = GRPO(importance_cap=2.0)(LossInputs(old, old, sampler, mask, torch.tensor([1.0]), None, 1.0, 2.0))
    assert loss.item() == pytest.approx(-(2.0 + math.exp(-1)) / 2)


@pytest.mark.parametrize("objective", [GRPO(), GRPO(kl_weight=0.1, kl_estimator="k2", importance_cap=2.0)])
@pytest.mark.parametrize("splits", [1, 2, 4, 8])
def test_gradient_is_the_same_for_any_split(objective, splits):
    fields = inputs(reference=objective.needs_reference)
    objective(part(fields, slice(None)))[0].backward()
    whole, fields["logprobs"].grad = fields["logprobs"].grad.clone(), None
    for rows in torch.arange(8).chunk(splits):
        objective(part(fields, rows))[0].backward()
    torch.testing.assert_close(fields["logprobs"].grad, whole, rtol=0, atol=1e-6)
    assert whole.abs().sum() > 0


@pytest.mark.parametrize("bad", [{"clip_low": 1.5}, {"clip_high": -0.1}, {"kl_weight": -1.0}])
def test_bad_arguments_are_refused(bad):
    with pytest.raises(InputError, match="write"):
        GRPO(**bad)
