"""Per-token terms and averages worked by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saerl_lightning.errors import InputError
from saerl_lightning.objective import losses
from saerl_lightning.objective.terms import EntropyTerm, KLPenalty, SamplerCorrection


def test_clipped_surrogate_by_hand():
    ratio = torch.tensor([[0.5, 1.5], [0.5, 1.5]])
    gain = losses.clipped_surrogate(ratio, torch.tensor([2.0, -2.0]), low=0.2, high=0.3)
    torch.testing.assert_close(gain, torch.tensor([[1.0, 2.6], [-1.6, -3.0]]))
    low, high = losses.clipped(ratio, torch.tensor([2.0, -2.0]), low=0.2, high=0.3)
    assert low.tolist() == [[0, 0], [1, 0]]
    assert high.tolist() == [[0, 1], [0, 0]]


def test_dual_clip_by_hand():
    """A ratio of 9 with A = -2 gains -6 rather than -18, and has no gradient; A > 0 is as before."""
    ratio = torch.tensor([[9.0, 2.0], [9.0, 2.0]], requires_grad=True)
    gain = losses.clipped_surrogate(ratio, torch.tensor([2.0, -2.0]), 0.2, 0.3, dual_clip=3.0)
    torch.testing.assert_close(gain, torch.tensor([[2.6, 2.6], [-6.0, -4.0]]))
    gain.sum().backward()
    torch.testing.assert_close(ratio.grad, torch.tensor([[0.0, 0.0], [0.0, -2.0]]))


def test_ratios_by_hand():
    """Token ratios 2 and 8 (and a padded one): 4 by their geometric mean, 16 by their product."""
    logprobs, old = torch.tensor([[2.0, 8.0, 5.0]]).log(), torch.zeros(1, 3)
    mask = torch.tensor([[True, True, False]])
    torch.testing.assert_close(losses.token_ratio(logprobs, old), torch.tensor([[2.0, 8.0, 5.0]]))
    mean = losses.sequence_ratio(logprobs, old, mask, per_token=True)
    product = losses.sequence_ratio(logprobs, old, mask, per_token=False)
    torch.testing.assert_close(mean, torch.full((1, 3), 4.0))
    torch.testing.assert_close(product, torch.full((1, 3), 16.0))


def test_a_ratio_that_would_overflow_has_a_finite_gradient():
    logprobs = torch.zeros(1, 200, requires_grad=True)
    ratio = losses.sequence_ratio(logprobs, torch.full((1, 200), -9.0), torch.ones(1, 200, dtype=torch.bool), False)
    gain = losses.clipped_surrogate(ratio, torch.tensor([1.0]), 0.2, 0.2)
    gain.sum().backward()
    assert ratio.isfinite().all()
    assert logprobs.grad.eq(0).all()


def test_kl_estimators_by_hand():
    logp, ref = torch.tensor([[math.log(0.5)]]), torch.tensor([[math.log(0.25)]])
    assert losses.kl_k1(logp, ref).item() == pytest.approx(math.log(2))
    assert losses.kl_k2(logp, ref).item() == pytest.approx(math.log(2) ** 2 / 2)
    assert losses.kl_k3(logp, ref).item() == pytest.approx(0.5 - 1 + math.log(2))


@given(st.lists(st.floats(0.01, 0.99), min_size=2, max_size=6), st.lists(st.floats(0.01, 0.99), min_size=6, max_size=6))
def test_kl_estimates_have_the_right_mean(p, q):
    """Under the policy's own distribution k1 and k3 average to the exact KL."""
    p, q = (torch.tensor(x[: len(p)], dtype=torch.float64) for x in (p, q))
    p, q = (x / x.sum() for x in (p, q))
    exact = (p * (p / q).log()).sum()
    for estimator in (losses.kl_k1, losses.kl_k3):
        torch.testing.assert_close((p * estimator(p.log()[None], q.log()[None])[0]).sum(), exact)


def test_averages_by_hand():
    """Rows of one and three tokens, of a step of 5 rows and 10 tokens, longest 4."""
    values = torch.tensor([[6.0, 9.0, 9.0], [1.0, 2.0, 3.0]])
    mask = torch.tensor([[True, False, False], [True, True, True]])
    assert losses.row_mean(values, mask, 5.0).item() == pytest.approx((6 + 2) / 5)
    assert losses.token_mean(values, mask, 10.0).item() == pytest.approx(12 / 10)
    assert losses.constant_length(values, mask, 5.0, 4).item() == pytest.approx(12 / 20)


@pytest.mark.parametrize(
    ("correction", "weights", "outside"),
    [
        (SamplerCorrection(cap=2.0), [2.0, 0.25], [1, 0]),
        (SamplerCorrection(cap=2.0, floor=0.5), [2.0, 0.5], [1, 1]),
        (SamplerCorrection(mode="mask", cap=4.0), [4.0, 0.25], [0, 0]),
        (SamplerCorrection(mode="mask", cap=2.0, floor=0.1), [0.0, 0.25], [1, 0]),
        (SamplerCorrection("sequence", cap=2.0), [1.0, 1.0], [0, 0]),
        (SamplerCorrection("sequence", "mask", cap=2.0, floor=1.0), [1.0, 1.0], [0, 0]),
    ],
)
def test_corrections_by_hand(correction, weights, outside, make_step):
    """Tokens of pi_old / pi_sampler 4 and 1/4, whose product is 1; what is padded has no say."""
    mask = torch.tensor([[True, True, False]])
    old, sampler = torch.tensor([[4.0, 0.25, 9.0]]).log(), torch.zeros(1, 3)
    step = make_step(rows=1, width=3, old_logprobs=old, sampler_logprobs=sampler, mask=mask)
    found, out = correction.weights(step)
    torch.testing.assert_close(found[mask], torch.tensor(weights))
    assert out[mask].tolist() == outside


@pytest.mark.parametrize(
    "bad",
    [
        lambda: KLPenalty(-1.0),
        lambda: KLPenalty(float("nan")),
        lambda: EntropyTerm(bonus=float("nan")),
        lambda: EntropyTerm(top_share=0.0),
        lambda: EntropyTerm(top_share=1.1),
        lambda: SamplerCorrection(cap=0.5),
        lambda: SamplerCorrection(floor=1.5),
        lambda: SamplerCorrection(floor=-0.1),
    ],
)
def test_bad_terms_are_refused(bad):
    with pytest.raises(InputError, match="write"):
        bad()
