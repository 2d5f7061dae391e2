"""Every algorithm's loss and gradient on numbers worked by hand."""

import math
from dataclasses import replace

import pytest
import torch

from saerl_lightning.errors import InputError
from saerl_lightning.objective.bnpo import BNPO
from saerl_lightning.objective.cispo import CISPO
from saerl_lightning.objective.dapo import DAPO
from saerl_lightning.objective.dr_grpo import DrGRPO
from saerl_lightning.objective.grpo import GRPO
from saerl_lightning.objective.gspo import GSPO
from saerl_lightning.objective.objective import LossInputs, Objective
from saerl_lightning.objective.policy_gradient import PolicyGradient
from saerl_lightning.objective.reinforce_pp import ReinforcePP
from saerl_lightning.objective.rloo import RLOO
from saerl_lightning.objective.terms import EntropyTerm, KLPenalty, SamplerCorrection

MASK = torch.tensor([[True, False, False], [True, True, True]])


def step(ratio=None, advantages=(3.0, -1.0)):
    """Two completions of 1 and 3 tokens, each token of probability 1/e; at most 4 tokens long; entropies 0, .1 … .5."""
    ratio = torch.ones(2, 3) if ratio is None else torch.tensor(ratio)
    old = torch.full((2, 3), -1.0)
    logprobs = (old + ratio.log()).requires_grad_()
    entropy = torch.arange(6.0).view(2, 3) / 10
    sizes = dict(step_rows=2.0, step_tokens=4.0, scored_tokens=4.0, max_tokens=4, entropy_floor=0.45)
    return LossInputs(logprobs, old, old, entropy, MASK, torch.tensor(advantages), None, **sizes)


def run(objective, inputs):
    loss, _ = objective(inputs)
    return loss.item(), torch.autograd.grad(loss, inputs.logprobs)[0]


@pytest.mark.parametrize(
    ("objective", "loss", "first", "others"),
    [
        (GRPO(), -(3 - 1) / 2, -3 / 2, 1 / 6),  # the second row's -1 is spread over its three tokens
        (DrGRPO(), -(3 - 3) / 8, -3 / 8, 1 / 8),  # two rows of at most 4 tokens
        (DAPO(), -(3 - 3) / 4, -3 / 4, 1 / 4),  # four tokens
        (BNPO(), -(3 - 3) / 4, -3 / 4, 1 / 4),
        (ReinforcePP(), -(3 - 3) / 4, -3 / 4, 1 / 4),
        (GSPO(), -(3 - 1) / 2, -3 / 2, 1 / 6),  # the geometric mean of three ratios has a third of each one's gradient
        (RLOO(), -(3 - 1) / 2, -3 / 2, 1 / 2),  # A times the gradient of the sum of log pi
        (CISPO(), -(3 * -1 + 3) / 4, -3 / 4, 1 / 4),  # log pi is -1
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, float) else "",
)
def test_on_policy_losses_differ_by_how_tokens_are_averaged(objective, loss, first, others):
    """Ratio 1: what differs is how tokens are averaged."""
    found, gradient = run(objective, step())
    assert found == pytest.approx(loss)
    torch.testing.assert_close(gradient, torch.tensor([[first, 0.0, 0.0], [others, others, others]]))


@pytest.mark.parametrize(
    ("objective", "loss", "gradient"),
    [
        # gains: min(1.5, 1.2) 3; max of 2, 0.8, 1 by -1
        (GRPO(), -(3.6 + (-2 - 0.8 - 1) / 3) / 2, [[0, 0, 0], [2 / 6, 0, 1 / 6]]),
        (DAPO(), -(3 * 1.28 - 2 - 0.8 - 1) / 4, [[0, 0, 0], [2 / 4, 0, 1 / 4]]),
        (DAPO(dual_clip=1.9), -(3 * 1.28 - 1.9 - 0.8 - 1) / 4, [[0, 0, 0], [0, 0, 1 / 4]]),
        # log pi is -1 + log of 1.5, 2, 0.5, 1; weights as they are, then at most 1.2 and at least 0.8
        (
            CISPO(),
            -(1.5 * 3 * (-1 + math.log(1.5)) - 2 * (-1 + math.log(2)) - 0.5 * (-1 - math.log(2)) + 1) / 4,
            [[-4.5 / 4, 0, 0], [2 / 4, 0.5 / 4, 1 / 4]],
        ),
        (
            CISPO(ratio_cap=1.2, ratio_floor=0.8),
            -(1.2 * 3 * (-1 + math.log(1.5)) - 1.2 * (-1 + math.log(2)) - 0.8 * (-1 - math.log(2)) + 1) / 4,
            [[-3.6 / 4, 0, 0], [1.2 / 4, 0.8 / 4, 1 / 4]],
        ),
        # the second row's ratios 2, 1/2, 1 have product 1
        (GSPO(clip_high=0.2), -(3.6 - 1) / 2, [[0, 0, 0], [1 / 6, 1 / 6, 1 / 6]]),
        (RLOO(clip_high=0.6), -(4.5 - 1) / 2, [[-4.5 / 2, 0, 0], [1 / 2, 1 / 2, 1 / 2]]),
    ],
)
def test_off_policy_losses_clip_as_worked_by_hand(objective, loss, gradient):
    """Token ratios 1.5 with A = 3, and 2, 1/2, 1 with A = -1."""
    found, grad = run(objective, step([[1.5, 1.0, 1.0], [2.0, 0.5, 1.0]]))
    assert found == pytest.approx(loss)
    torch.testing.assert_close(grad, torch.tensor(gradient, dtype=torch.float32))


def test_gspo_and_rloo_clip_whole_completions():
    """Ratios 2, 2, 2: GSPO clips at its geometric mean 2, RLOO at the product 8; A > 0, so no token has a gradient."""
    inputs = step([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]], advantages=(0.0, 1.0))
    for objective in (GSPO(), RLOO()):
        loss, gradient = run(objective, inputs)
        assert loss == pytest.approx(-(1 + objective.clip_high) / 2)
        assert gradient.eq(0).all()
    assert GSPO()(inputs)[1]["policy/ratio/max"].item() == pytest.approx(2.0)
    assert RLOO()(inputs)[1]["policy/ratio/max"].item() == pytest.approx(8.0)
    assert GSPO()(inputs)[1]["policy/clip_high_frac"].item() == pytest.approx(3 / 4)  # of four tokens


def test_metrics_by_hand():
    inputs = replace(step([[1.5, 7.0, 7.0], [2.0, 0.5, 1.0]]), scored_tokens=8.0)
    _, metrics = GRPO()(inputs)
    expected = {
        "policy/clip_low_frac": 1 / 8,  # 0.5 with A < 0
        "policy/clip_high_frac": 1 / 8,  # 1.5 with A > 0
        "policy/ratio_mean": 5 / 8,
        "policy/ratio/min": 0.5,
        "policy/ratio/max": 2.0,
    }
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected)


def test_cispo_counts_every_weight_that_was_cut(make_step):
    """Ratios 0.5, 1 and 8 in rows of advantage 1, -1 and 0, weights from 0.7 to 5: a row without advantage has none."""
    ratio = torch.tensor([[0.5, 1.0, 8.0]] * 3, dtype=torch.float64)
    mask = torch.ones(3, 3, dtype=torch.bool)
    old = torch.full((3, 3), -9.0, dtype=torch.float64)
    inputs = make_step(
        rows=3,
        width=3,
        old_logprobs=old,
        logprobs=old + ratio.log(),
        mask=mask,
        advantages=torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64),
        scored_tokens=9.0,
    )
    _, metrics = CISPO(ratio_floor=0.7)(inputs)
    assert metrics["policy/clip_low_frac"].item() == pytest.approx(2 / 9)
    assert metrics["policy/clip_high_frac"].item() == pytest.approx(2 / 9)
    # a clip removes 0.5 where A < 0, 8 where A > 0, and a dual clip 8 where A < 0
    for objective, high in ((DAPO(), 1), (DAPO(dual_clip=3.0), 2), (DAPO(dual_clip=9.0), 1)):
        _, metrics = objective(inputs)
        assert metrics["policy/clip_low_frac"].item() == pytest.approx(1 / 9)
        assert metrics["policy/clip_high_frac"].item() == pytest.approx(high / 9)


def test_kl_in_the_loss():
    """At every token log pi - log ref is -log 2, so k1 is -log 2, k2 its half square, k3 2 - 1 - log 2."""
    inputs = replace(step(), reference=torch.full((2, 3), -1 + math.log(2)))
    for estimator, kl in (("k1", -math.log(2)), ("k2", math.log(2) ** 2 / 2), ("k3", 1 - math.log(2))):
        objective = GRPO(kl=KLPenalty(0.5, estimator))
        loss, metrics = objective(inputs)
        assert loss.item() == pytest.approx(-1 + 0.5 * kl)
        assert metrics["policy/kl"].item() == pytest.approx(kl)
        assert objective.needs_reference
        assert not objective.skips_zero_advantage
        assert objective.penalty(inputs.logprobs, inputs.reference, MASK) is None
    assert GRPO(kl=KLPenalty(0.0)).skips_zero_advantage
    assert not GRPO(kl=KLPenalty(0.0)).needs_reference


def test_kl_in_the_reward():
    """Rows of 1 and 3 tokens lose 0.5 log 2 a token; the loss is what it is without."""
    objective = GRPO(kl=KLPenalty(0.5, "k1", "reward"))
    inputs = replace(step(), reference=torch.full((2, 3), -1 - math.log(2)))
    penalty = objective.penalty(inputs.sampler_logprobs, inputs.reference, MASK)
    torch.testing.assert_close(penalty, 0.5 * math.log(2) * torch.tensor([1.0, 3.0]))
    loss, metrics = objective(inputs)
    assert loss.item() == pytest.approx(-1.0)
    assert metrics["policy/kl"].item() == pytest.approx(math.log(2))
    assert objective.needs_reference
    assert objective.skips_zero_advantage


def test_correction_weighs_tokens():
    """pi_old / pi_sampler of e and 1/e: the first is capped at 2, the second kept."""
    inputs = replace(step(advantages=(0.0, 1.0)), sampler_logprobs=torch.tensor([[-1.0, 0, 0], [-2.0, 0.0, -1.0]]))
    loss, metrics = GRPO(correction=SamplerCorrection(cap=2.0))(inputs)
    assert loss.item() == pytest.approx(-(2 + math.exp(-1) + 1) / 3 / 2)
    assert metrics["policy/correction_mean"].item() == pytest.approx((1 + 2 + math.exp(-1) + 1) / 4)
    assert metrics["policy/correction_capped_frac"].item() == pytest.approx(1 / 4)
    assert GRPO(correction=SamplerCorrection()).corrects_sampler


def test_entropy_bonus_and_top_share():
    """Entropies 0, .3, .4, .5 of the completion tokens: a bonus of their mean; a floor of .45 leaves the last token."""
    loss, gradient = run(DAPO(entropy=EntropyTerm(bonus=2.0)), step())
    assert loss == pytest.approx(-2 * (0.0 + 0.3 + 0.4 + 0.5) / 4)
    loss, gradient = run(DAPO(entropy=EntropyTerm(top_share=0.25)), step())
    assert loss == pytest.approx(1 / 4)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0, 0], [0, 0, 1 / 4]]))


class Bare(Objective):
    """What must be written, and nothing else."""

    def advantages(self, rewards):
        return rewards

    def __call__(self, inputs):
        return inputs.logprobs.sum(), {}


def test_an_objective_needs_nothing_more_by_default():
    bare = Bare()
    wants = ("needs_reference", "corrects_sampler", "reads_sampler", "skips_zero_advantage", "entropy_gradient")
    assert [getattr(bare, name) for name in (*wants, "masks_truncated")] == [False] * 6
    assert bare.top_entropy == 1.0
    assert bare.penalty(None, None, None) is None
    assert Objective.__abstractmethods__ == {"advantages", "__call__"}
    assert PolicyGradient.__abstractmethods__ == {"advantages", "gain", "aggregate"}


def test_a_dual_clip_inside_the_range_is_told_its_bound():
    with pytest.raises(InputError, match=r"dual_clip is 1\.2; write null, or more than 1 \+ clip_high = 1\.3"):
        GRPO(clip_high=0.3, dual_clip=1.2)


def test_only_dapo_that_is_told_to_masks_truncated():
    assert DAPO(mask_truncated=True).masks_truncated
    assert not DAPO().masks_truncated


@pytest.mark.parametrize(
    "bad",
    [
        lambda: GRPO(clip_low=1.5),
        lambda: DAPO(clip_high=-0.1),
        lambda: GRPO(dual_clip=1.1),
        lambda: CISPO(ratio_cap=0.5),
        lambda: CISPO(ratio_floor=1.5),
        lambda: GSPO(entropy=EntropyTerm(top_share=0.2)),
        lambda: RLOO(entropy=EntropyTerm(top_share=0.2)),
        lambda: BNPO(beta_normalised=True, kl=KLPenalty(0.1, where="reward")),
        lambda: BNPO(beta_normalised=True).advantages(torch.tensor([[1.5, 0.0]])),
    ],
)
def test_bad_arguments_are_refused(bad):
    with pytest.raises(InputError, match="write"):
        bad()
