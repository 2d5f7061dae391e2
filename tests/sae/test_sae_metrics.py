"""The numbers that an SAE is judged by, and its rates, against values worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from saerl_lightning.sae.architecture import build, coefficients, threshold_for
from saerl_lightning.sae.harvest import TokenRows
from saerl_lightning.sae.metrics import (
    FeatureActivity,
    Reconstruction,
    SplicedLoss,
    firing_counts,
    predictions,
    spliced_loss,
)
from saerl_lightning.sae.module import rate_factor
from tests.sae.small_sae import LAYER, read


def test_explained_variance_and_l0_by_hand():
    """X = (0, 0), (2, 0), (4, 0): variance 8/3 a position. y off by 1 once: residual 1/3. So 1 - 1/8."""
    metric = Reconstruction(2)
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]])
    y = x.clone()
    y[1, 1] = 1.0
    metric.update(x[:1], y[:1], torch.tensor(1.0))
    metric.update(x[1:], y[1:], torch.tensor(5.0))
    assert metric.compute()["explained_variance"].item() == pytest.approx(1 - 1 / 8)
    assert metric.compute()["l0"].item() == 2.0


def test_firing_counts_agree_for_dense_and_sparse_activations():
    acts = torch.tensor([[0.0, 2.0, 0.0], [1.0, 3.0, 0.0]])
    places, values = torch.tensor([[0, 0, 1, 1], [1, 2, 0, 1]]), torch.tensor([2.0, 0.0, 1.0, 3.0])
    explicit_zero = torch.sparse_coo_tensor(places, values, (2, 3), check_invariants=True)
    assert firing_counts(acts).tolist() == firing_counts(explicit_zero).tolist() == [1.0, 2.0, 0.0]


def test_a_feature_dies_after_its_silence_and_densities_forget():
    activity = FeatureActivity(3, dead_after=20)
    activity.update(torch.tensor([10.0, 5.0, 0.0]), 10)
    assert activity.dead().tolist() == [False, False, False]
    activity.update(torch.tensor([10.0, 0.0, 0.0]), 10)
    assert activity.dead().tolist() == [False, False, True]
    assert activity.metrics() == {
        "dead_share": pytest.approx(1 / 3),
        "density/above_1e-1": pytest.approx(2 / 3),
        "density/below_1e-5": pytest.approx(1 / 3),
        "density/median_log10": pytest.approx(math.log10(0.25)),
    }
    activity.update(torch.tensor([10.0, 0.0, 3.0]), 10)
    assert activity.dead().tolist() == [False, True, False]
    for _ in range(200):
        activity.update(torch.tensor([10.0, 0.0, 0.0]), 10)
    assert 20 <= activity.seen <= 40  # what was seen long ago is forgotten
    assert activity.metrics()["density/below_1e-5"] == pytest.approx(2 / 3)
    assert int(activity.trained) == 2030


def test_the_rate_rises_stays_and_falls():
    factors = [rate_factor(step, 10, 4, 0.4) for step in range(11)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])
    assert [rate_factor(step, math.inf, 0, 0.0) for step in range(3)] == [1, 1, 1]


def test_penalties_warm_up_as_in_sae_lens():
    from sae_lens.training.optim import CoefficientScheduler

    sae = build("standard", 4, 8, {"l1_coefficient": 3.0, "l1_warm_up_steps": 5}, 0)
    peer = CoefficientScheduler(5, 3.0)
    for step in range(8):
        assert coefficients(sae, step) == {"l1": pytest.approx(peer.value)}
        peer.step()
    assert coefficients(build("topk", 4, 8, {"k": 2}, 0), 3) == {}


def test_splicing_leaves_first_positions_and_padding_alone(tiny):
    """Alone and padded beside a longer row, a prompt's losses are the same; the identity changes nothing; zeros do."""
    served = read(tiny)
    model = served.model.load_whole()
    short, long = [5, 6, 7, 8], [9, 8, 7, 6, 5, 4, 3]
    together = TokenRows.pad([short, long], [0, 0])
    losses = {}
    for name, replace in {"clean": None, "same": lambda x: x, "zero": torch.zeros_like}.items():
        apart = [spliced_loss(model, LAYER, TokenRows.pad([row], [0]), replace) for row in (short, long)]
        losses[name] = float(spliced_loss(model, LAYER, together, replace))
        assert losses[name] == pytest.approx(float(sum(apart)), rel=1e-5)
    assert losses["same"] == pytest.approx(losses["clean"], rel=1e-6)
    assert abs(losses["zero"] - losses["clean"]) > 1e-3
    assert int(predictions(together).sum()) == 2 + 5
    with torch.no_grad():
        logprobs = model(torch.tensor([long])).logits[0].log_softmax(-1)
    by_hand = -sum(logprobs[i, long[i + 1]] for i in range(1, len(long) - 1))
    assert float(spliced_loss(model, LAYER, TokenRows.pad([long], [0]))) == pytest.approx(float(by_hand), rel=1e-5)
    seen = []
    spliced_loss(model, LAYER, together, lambda x: seen.append(len(x)) or x)
    assert seen == [3 + 6]
    assert not model.base_model.layers[LAYER]._forward_hooks


def test_the_loss_score_by_hand():
    metric = SplicedLoss()
    metric.update(torch.tensor(2.0), torch.tensor(3.0), torch.tensor(6.0), torch.tensor(4.0), 1)
    metric.update(torch.tensor(2.0), torch.tensor(3.0), torch.tensor(6.0), torch.tensor(4.0), 1)
    assert {name: float(value) for name, value in metric.compute().items()} == {
        "ce_clean": 2.0,
        "ce_spliced": 3.0,
        "ce_zeroed": 6.0,
        "ce_mean": 4.0,
        "ce_score": 0.75,
        "ce_score_mean": 0.5,
    }


def test_a_threshold_by_hand():
    """Two positions whose pre-activations are the inputs themselves, and one feature a position is wanted on average."""
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig

    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=3, d_sae=3)).requires_grad_(False)
    for name, value in (("W_enc", torch.eye(3)), ("b_enc", torch.zeros(3)), ("b_dec", torch.zeros(3))):
        getattr(sae, name).copy_(value)
    sae.threshold.fill_(0.5)
    x = torch.tensor([[5.0, 4.0, 1.0], [2.0, -3.0, -9.0]])
    assert threshold_for(sae, x, 1) == 3.0  # 5 and 4 are active, 2 is not
    assert threshold_for(sae, x, 1.5) == 1.5
    assert threshold_for(sae, x, 3) == 0.0  # only four are positive
    assert sae.threshold.tolist() == [0.5] * 3


@pytest.mark.parametrize("zeroed", [2.0, 1.0])
def test_a_score_is_not_defined_where_the_layer_earns_nothing(zeroed):
    metric = SplicedLoss()
    metric.update(torch.tensor(2.0), torch.tensor(1.5), torch.tensor(zeroed), torch.tensor(4.0), 1)
    measured = metric.compute()
    assert measured["ce_score"].isnan() and float(measured["ce_score_mean"]) == 1.25
