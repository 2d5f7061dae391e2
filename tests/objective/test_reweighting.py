"""Weights of rows and tokens: numbers worked by hand, mean 1, and the same gradient however a step is split."""

from dataclasses import replace
from math import e

import pytest
import torch

import saerl_lightning.objective.reweighting
from saerl_lightning.errors import InputError
from saerl_lightning.objective.cispo import CISPO
from saerl_lightning.objective.dapo import DAPO
from saerl_lightning.objective.grpo import GRPO
from saerl_lightning.objective.gspo import GSPO
from saerl_lightning.objective.reweighting.advantage_band import AdvantageBand
from saerl_lightning.objective.reweighting.advantage_softmax import AdvantageSoftmax
from saerl_lightning.objective.reweighting.ar import AR
from saerl_lightning.objective.reweighting.label_weights import LabelWeights
from saerl_lightning.objective.reweighting.per import PER
from saerl_lightning.objective.reweighting.predicted_weights import PredictedWeights
from saerl_lightning.objective.reweighting.reweighting import Reweighting, WeighedRows
from saerl_lightning.objective.rloo import RLOO
from saerl_lightning.records import Prompt
from tests.shipped_classes import shipped

REWEIGHTINGS = {
    "AdvantageSoftmax": AdvantageSoftmax(temperature=0.7),
    "AdvantageBand": AdvantageBand(),
    "PER": PER(),
    "AR": AR(),
    "LabelWeights": LabelWeights(power=2.0),
    "PredictedWeights": PredictedWeights("learnability"),
}


def test_every_shipped_reweighting_is_tried_here():
    assert shipped(Reweighting, saerl_lightning.objective.reweighting).keys() == REWEIGHTINGS.keys()


def test_each_names_the_column_that_it_reads():
    read = {name: (each.reads, each.predicted) for name, each in REWEIGHTINGS.items()}
    assert read.pop("LabelWeights") == ("difficulty", False)
    assert read.pop("PredictedWeights") == ("pass_rate_predicted", True)
    assert PredictedWeights().reads == "chance_predicted"
    assert set(read.values()) == {(None, False)}


def alone(values):
    """One rank."""
    return values, slice(0, len(values))


def rows(advantages, mask=None, probabilities=None, labels=None) -> WeighedRows:
    advantages = torch.tensor(advantages)
    mask = torch.ones(len(advantages), 2, dtype=torch.bool) if mask is None else torch.tensor(mask)
    none = torch.full_like(advantages, torch.nan)
    return WeighedRows(
        advantages,
        mask,
        torch.ones(mask.shape) if probabilities is None else torch.tensor(probabilities),
        none if labels is None else torch.tensor(labels),
    )


def weights_of(reweighting, given: WeighedRows) -> list:
    return reweighting.weights(given, alone).tolist()


@pytest.mark.parametrize(
    ("reweighting", "advantages", "expected"),
    [
        (AdvantageSoftmax(), [1.0, 0.0], [2 * e / (e + 1), 2 / (e + 1)]),  # 1.4621, .5379
        (AdvantageSoftmax(0.5), [-0.5, 0.0], [2 * e / (e + 1), 2 / (e + 1)]),
        (PER(), [-4.0, 1.0], [4 / 3, 2 / 3]),
        (PER(0.0), [-4.0, 1.0], [1, 1]),
        (PER(), [0.0, 0.0], [1, 1]),  # nothing to tell them apart
        (AdvantageBand(), [0.0, -1.0, 2.0, 3.0], [2 / 3, 4 / 3, 4 / 3, 2 / 3]),  # quartiles .75 and 2.25
        (AdvantageBand(0.5, 1.0, 0.0), [1.0, 2.0, 3.0], [3, 0, 0]),
    ],
)
def test_a_row_weighs_as_worked_by_hand(reweighting, advantages, expected):
    found = torch.tensor(weights_of(reweighting, rows(advantages)))
    assert found[:, 0].tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(found[:, 0], found[:, 1])


def test_a_label_weighs_and_a_prompt_without_it_counts_as_the_others_do():
    """Labels 1, 3 and none: 1, 3, 2, with mean 2; squared 1, 9, 5."""
    known = rows([1.0, 1.0, 1.0], labels=[1.0, 3.0, torch.nan])
    assert torch.tensor(weights_of(LabelWeights(), known))[:, 0].tolist() == pytest.approx([0.5, 1.5, 1.0])
    assert torch.tensor(weights_of(LabelWeights(power=2.0), known))[:, 0].tolist() == pytest.approx([0.2, 1.8, 1.0])
    assert torch.tensor(weights_of(LabelWeights(power=0.0), known))[:, 0].tolist() == [1, 1, 1]
    assert torch.tensor(weights_of(LabelWeights(), rows([1.0, 2.0])))[:, 0].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("reweighting", "predicted", "expected"),
    [
        (PredictedWeights(), [0.3, 0.9], [0.5, 1.5]),
        (PredictedWeights("learnability"), [0.5, 0.1], [25 / 17, 9 / 17]),  # .25 and .09, with mean .17
        (PredictedWeights("difficulty"), [0.25, 0.75], [1.5, 0.5]),
        (PredictedWeights("difficulty", 2.0), [0.25, 0.75], [1.8, 0.2]),  # .5625 and .0625, with mean .3125
        (PredictedWeights("chance", 0.0), [0.3, 0.9], [1, 1]),
        (PredictedWeights(), [0.0, 0.0], [1, 1]),
    ],
)
def test_a_prediction_weighs_as_worked_by_hand(reweighting, predicted, expected):
    found = torch.tensor(weights_of(reweighting, rows([1.0, -2.0], labels=predicted)))[:, 0]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_labels_that_can_not_weigh_are_refused():
    prompts = [Prompt.asking("a", "?", labels={"level": 2.0}), Prompt.asking("b", "?", labels={"level": -1.0})]
    with pytest.raises(
        InputError, match=r"LabelWeights\.label is 'difficulty', but no prompt has it; labels present: level"
    ):
        LabelWeights().check(prompts)
    with pytest.raises(InputError, match=r"that of 'b' is -1; give 0 or more"):
        LabelWeights("level").check(prompts)
    LabelWeights("level").check(prompts[:1])


def test_tokens_weigh_by_their_probability_and_only_those_in_the_loss_count():
    """1 and .5 with alpha .5: (1, .75) / .875 = (1.1429, .8571); the third token is not in the loss."""
    given = rows([1.0], mask=[[True, True, False]], probabilities=[[1.0, 0.5, 0.01]])
    assert weights_of(AR(), given)[0][:2] == pytest.approx([1.1429, 0.8571], abs=1e-4)
    assert weights_of(AR(0.0), given)[0][:2] == [1, 1]
    assert weights_of(AR(1.0), given)[0][:2] == pytest.approx([4 / 3, 2 / 3])


def test_rows_that_are_not_in_the_loss_have_no_say():
    given = rows([4.0, 1.0, 100.0], mask=[[True, False], [True, True], [False, False]])
    assert torch.tensor(weights_of(PER(), given))[:, 0].tolist() == pytest.approx([4 / 3, 2 / 3, 1])
    nothing = rows([4.0], mask=[[False, False]])
    for each in REWEIGHTINGS.values():
        assert torch.tensor(weights_of(each, nothing)).isfinite().all()


def step_of(seed: int = 0, count: int = 12) -> WeighedRows:
    random = torch.Generator().manual_seed(seed)
    mask = torch.arange(5)[None] < torch.randint(0, 6, (count, 1), generator=random)
    labels = torch.rand(count, generator=random).masked_fill(torch.arange(count) % 5 == 0, torch.nan)
    return WeighedRows(
        torch.randn(count, generator=random), mask, torch.rand(count, 5, generator=random).double(), labels
    )


def part_of(step: WeighedRows, start: int, end: int) -> WeighedRows:
    return WeighedRows(**{name: value[start:end] for name, value in vars(step).items()})


@pytest.mark.parametrize("name", REWEIGHTINGS)
def test_weights_have_mean_1_over_the_step_and_do_not_depend_on_the_ranks(name):
    """Each of three ranks computes with what the others give, as a gather would: once it is asked, once it is told."""
    reweighting, step = REWEIGHTINGS[name], step_of()
    whole = reweighting.weights(step, alone)
    if reweighting.level == "rows":
        assert whole[step.mask.any(1), 0].mean().item() == pytest.approx(1)
    else:
        assert whole[step.mask].mean().item() == pytest.approx(1)
    assert (whole >= 0).all() and whole[step.mask].std() > 0.01
    parts = [part_of(step, *ends) for ends in ((0, 2), (2, 9), (9, 12))]
    given: list[torch.Tensor] = []
    for part in parts:
        reweighting.weights(part, lambda values: (given.append(values), alone(values))[1])
    found = []
    for number, part in enumerate(parts):
        start = sum(len(each) for each in given[:number])
        place = slice(start, start + len(given[number]))
        found.append(reweighting.weights(part, lambda _, place=place: (torch.cat(given), place)))
    torch.testing.assert_close(torch.cat(found)[step.mask], whole[step.mask])


def slow_gradient(step, objective) -> torch.Tensor:
    """One token after the other: weight times clipped gain, a mean over rows of means over tokens, or over tokens."""
    logprobs = step.logprobs.detach().requires_grad_()
    loss = torch.zeros((), dtype=torch.float64)
    for row in range(len(logprobs)):
        tokens = step.mask[row].nonzero().flatten().tolist()
        for token in tokens:
            ratio = (logprobs[row, token] - step.old_logprobs[row, token]).exp()
            a = step.advantages[row]
            if isinstance(objective, CISPO):
                gain = ratio.detach().clamp(max=5.0) * a * logprobs[row, token]
            else:
                gain = min(ratio * a, ratio.clamp(1 - objective.clip_low, 1 + objective.clip_high) * a)
            size = step.step_rows * len(tokens) if isinstance(objective, GRPO) else step.step_tokens
            loss = loss - step.weights[row, token] * gain / size
    return torch.autograd.grad(loss, logprobs)[0]


@pytest.mark.parametrize("objective", [GRPO(), DAPO(), CISPO()], ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("name", REWEIGHTINGS)
def test_the_gradient_is_the_slow_one_in_1_and_in_3_micro_batches(name, objective, make_step, micro_batch):
    step = make_step()
    given = WeighedRows(step.advantages, step.mask, step.sampler_logprobs.exp(), torch.linspace(0.1, 0.9, 8))
    step = replace(step, weights=REWEIGHTINGS[name].weights(given, alone))
    plain = torch.autograd.grad(objective(replace(step, weights=None))[0], step.logprobs)[0]
    expected = slow_gradient(step, objective)
    assert not torch.allclose(plain, expected)
    for cut in ([range(8)], [[0, 5, 6], [1], [2, 3, 4, 7]]):
        loss = sum(objective(micro_batch(step, list(part)))[0] for part in cut)
        found = torch.autograd.grad(loss, step.logprobs, retain_graph=True)[0]
        torch.testing.assert_close(found, expected)


def test_weights_of_1_are_none_to_the_last_bit(make_step):
    step = make_step()
    ones = torch.ones_like(step.old_logprobs)
    for objective in (GRPO(), DAPO(), GSPO(), RLOO()):
        assert torch.equal(objective(step)[0], objective(replace(step, weights=ones))[0])


def test_what_does_not_fit_the_objective_is_refused():
    AR().require("tokens", "GRPO")
    PER().require("rows", "GSPO")
    assert (GSPO().weighs, RLOO().weighs, GRPO().weighs, CISPO().weighs) == ("rows", "rows", "tokens", "tokens")
    with pytest.raises(
        InputError, match=r"reweighting AR weighs tokens, and the loss of GSPO weighs rows; write one that"
    ):
        AR().require("rows", "GSPO")
    with pytest.raises(InputError, match=r"PER weighs rows, and the loss of Mine weighs nothing; write null"):
        PER().require("nothing", "Mine")
    with pytest.raises(InputError, match=r"AdvantageBand is from 0\.8 to 0\.2; write a high that is at least the low"):
        AdvantageBand(0.8, 0.2)
