"""Speed, Knapsack and MostLearnable: worked by hand, over ranks, and in a training run that is resumed."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saerl_lightning.errors import InputError
from saerl_lightning.objective.bnpo import BNPO
from saerl_lightning.objective.grpo import GRPO
from saerl_lightning.objective.keeping.pods import PODS
from saerl_lightning.objective.keeping.variance_schedule import VarianceSchedule
from saerl_lightning.objective.reinforce_pp import ReinforcePP
from saerl_lightning.online.beliefs.prompt_beta import PromptBeta
from saerl_lightning.online.rules.nearest import Nearest
from saerl_lightning.online.selection import Selection
from saerl_lightning.policy.load import Policy
from saerl_lightning.records import Outcomes, Prompt, PromptBatch, Rollouts, Sampling
from saerl_lightning.training.grading import ByPrompt, GradedGroups
from saerl_lightning.training.metrics import Completions, refill_metrics
from saerl_lightning.training.rounds.knapsack import Knapsack, allocate, worth
from saerl_lightning.training.rounds.most_learnable import MostLearnable
from saerl_lightning.training.rounds.rounds import StepSource
from saerl_lightning.training.rounds.speed import Speed, alternating
from saerl_lightning.training.rounds.variance_bank import VarianceBank
from tests.training.conftest import data, fit, largest_difference, module, trainer, weights
from tests.training.test_dynamic_sampling import SomeNeverVary, Witness
from tests.training.test_grpo_module import Record
from tests.training.test_ranks import run_on_one_and_two

NAN = float("nan")


def batch_of(rows, places=()) -> PromptBatch:
    return PromptBatch([Prompt(f"p{row}", (), "") for row in rows], [[row] for row in rows], list(rows), places)


class Desk:
    """Samples scripted pass patterns, and notes what was asked: row r is right in the pattern's letters, again and again."""

    def __init__(self, patterns: dict[int, str], waiting=(), rates=None, group_size: int = 24) -> None:
        self.patterns = patterns
        self.waiting = list(waiting)
        self.log: list[tuple[int, int, list[int], list[int]]] = []
        rated = rates or {}
        self.source = StepSource(
            self.sample,
            self.next_prompts,
            lambda value: [value],
            lambda rows: np.array([rated.get(row, NAN) for row in rows]),
            group_size,
            batch_of,
        )

    def sample(self, batch, number, size):
        if batch is None:
            return None
        self.log.append((number, size, list(batch.rows), list(batch.places)))
        assert len(set(batch.places)) == len(batch.places)
        text = [self.patterns[row] for row in batch.rows]
        right = torch.tensor([[float(letters[g % len(letters)] == "1") for g in range(size)] for letters in text])
        completions = [[100 * row + 10 * number + g % 10] for row in batch.rows for g in range(size)]
        texts = [f"{row}.{number}.{g}" for row in batch.rows for g in range(size)]
        zeros = [[0.0]] * len(texts)
        rollouts = Rollouts.pack(batch.ids, completions, zeros, [False] * len(texts), texts, size, version=0)
        return GradedGroups(batch, rollouts, {"reward": right}, right, [number] * len(right), spent={"s": 1.0})

    def next_prompts(self, counts):
        taken, self.waiting = self.waiting[: counts[0]], self.waiting[counts[0] :]
        return batch_of(taken) if taken else None


# -- Speed ------------------------------------------------------------------------------------------------------------


def test_speed_pays_32_completions_and_not_72():
    desk = Desk({0: "0", 1: "10", 2: "1"})
    generated, trained = Speed(4, 20, max_rounds=0).fill(batch_of([0, 1, 2]), desk.source)
    assert desk.log == [(0, 4, [0, 1, 2], [0, 1, 2]), (1, 20, [1], [1])]
    assert refill_metrics(generated, trained) == {
        "rollouts/generated": 32.0,
        "rollouts/trained": 24.0,
        "rollouts/refill_rounds": 0.0,
        "rollouts/replaced_frac": 0.0,
    }
    assert trained.total.shape == (1, 24) and trained.rollouts.group_size == 24
    assert trained.rollouts.texts == [f"1.0.{g}" for g in range(4)] + [f"1.1.{g}" for g in range(20)]
    assert trained.total[0].tolist() == [1.0, 0.0] * 12
    assert generated.spent == {"s": 2.0}
    outcomes = generated.outcomes
    assert outcomes.uids == ["p0", "p1", "p2"] and outcomes.graded.tolist() == [4, 24, 4]
    assert outcomes.right.tolist() == [0.0, 12.0, 4.0] and outcomes.tokens.tolist() == [4, 24, 4]
    assert outcomes.varied.tolist() == [False, True, False]
    logged = Completions.of(generated, np.full(3, NAN)).metrics(0)
    assert logged["groups/zero_variance_frac"] == pytest.approx(2 / 3) and logged["groups/effective"] == 1
    assert logged["groups/tokens_per_effective"] == 32
    assert logged["plan/pass_rate"] == pytest.approx((0 + 0.5 + 1) / 3)


def test_speed_screens_further_prompts_until_the_step_is_full():
    """Units of 2: 4 and 6 completions. Rows 1, 4 and 5 vary; places of the last call are of no two prompts."""
    desk = Desk({0: "0", 1: "10", 2: "1", 3: "0", 4: "01", 5: "1100"}, waiting=[3, 4, 5, 6], group_size=10)
    generated, trained = Speed(4, 6).fill(batch_of([0, 1, 2]), desk.source)
    assert [(number, size, rows) for number, size, rows, _ in desk.log] == [
        (0, 4, [0, 1, 2]), (1, 4, [3, 4]), (2, 4, [5]), (11, 6, [1, 4, 5])
    ]  # fmt: skip
    assert desk.log[-1][3] == [1, 1 + 3, 0 + 6]
    assert desk.waiting == [6]
    assert trained.batch.rows == [1, 4, 5] and trained.rounds == [0, 1, 2] and trained.total.shape == (3, 10)
    assert trained.rollouts.texts[10:20] == [f"4.1.{g}" for g in range(4)] + [f"4.11.{g}" for g in range(6)]
    assert generated.total.numel() == 6 * 4 + 3 * 6
    assert generated.outcomes.graded.tolist() == [4, 10, 4, 4, 10, 10]


def test_speed_without_a_group_that_varies_trains_on_nothing():
    desk = Desk({0: "0", 1: "1"})
    generated, trained = Speed().fill(batch_of([0, 1]), desk.source)
    assert generated.total.numel() == 8 and trained.total.shape == (1, 24)
    assert not trained.in_loss.any() and refill_metrics(generated, trained)["rollouts/trained"] == 0
    assert not trained.keeping(torch.ones(1, 24, dtype=torch.bool)).in_loss.any()


def test_pieces_stand_side_by_side():
    assert alternating(2, 1, 3) == [0, 2, 3, 4, 1, 5, 6, 7]


# -- Knapsack ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rates", "budget", "dealt", "value"),
    [([0.5, 0.1], 8, [5, 3], 0.1391), ([0.9, 0.5, 0.05], 24, [2, 7, 15], 0.1489)],
)
def test_budgets_worked_by_hand(rates, budget, dealt, value):
    assert allocate(rates, budget) == dealt
    assert sum(worth(p, n) for p, n in zip(rates, dealt, strict=True)) == pytest.approx(value, abs=5e-5)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(2, 4),
    st.integers(0, 8),
    st.integers(6, 12),
)
def test_a_budget_is_divided_as_brute_force_divides_it(rates, unit, least, spare, most):
    """Every division of the units between the limits, with the value written out anew."""
    lowest, highest = -(-least // unit), most // unit
    count = min(len(rates) * lowest + spare, len(rates) * highest)

    def value(dealt):
        return sum(
            (1 - p ** (n * unit) - (1 - p) ** (n * unit)) * p * (1 - p) ** 2 for p, n in zip(rates, dealt, strict=True)
        )

    options = itertools.product(range(lowest, highest + 1), repeat=len(rates))
    best = max(value(each) for each in options if sum(each) == count)
    dealt = allocate(rates, count * unit, unit, least, most)
    assert sum(dealt) == count and min(dealt) >= lowest and max(dealt) <= highest
    assert value(dealt) == pytest.approx(best, abs=1e-12)


def test_units_without_value_go_to_prompts_that_none_solves():
    assert allocate([1.0, 0.0, 0.0], 12) == [2, 5, 5]
    assert allocate([1.0, 0.0], 12, most=8) == [4, 8]
    assert allocate([1.0, 1.0], 8, unit=2) == [2, 2]
    assert allocate([], 0) == []


def test_unknown_prompts_get_a_whole_group_and_places_are_single():
    desk = Desk(dict.fromkeys(range(3), "10"), rates={0: 0.5, 2: 0.1}, group_size=4)
    generated, trained = Knapsack(unit=1).fill(batch_of([0, 1, 2], [2, 1, 0]), desk.source)
    assert trained is generated
    # 0.1 at place 0 gets 3, 0.5 at place 2 gets 5, the unknown one 4
    assert desk.log == [(0, 1, [0] * 5 + [1] * 4 + [2] * 3, [2, 5, 8, 11, 14, 1, 4, 7, 10, 0, 3, 6])]
    assert generated.outcomes.uids == ["p0", "p1", "p2"] and generated.outcomes.graded.tolist() == [5, 4, 3]
    assert Knapsack().deal({0: NAN, 1: NAN}, 8) == {0: 4, 1: 4}


def outcomes(rates: dict[str, float]) -> Outcomes:
    """Eight graded answers a prompt; none at a NaN."""
    right = torch.tensor([0.0 if np.isnan(rate) else 8 * rate for rate in rates.values()])
    graded = torch.tensor([0 if np.isnan(rate) else 8 for rate in rates.values()])
    return Outcomes([*rates], torch.zeros(len(rates), 8), right, graded, right > 0, graded)


def test_the_latest_rate_is_what_is_known_without_a_prediction():
    rounds = Knapsack(unit=1)
    rounds.observe(outcomes({"p0": 0.25, "p1": 0.1}))
    rounds.observe(outcomes({"p0": 0.5, "p1": NAN, "p3": 1.5, "p4": -0.5}))
    assert rounds.state_dict()["rates"] == pytest.approx({"p0": 0.5, "p1": 0.1, "p3": 1.0, "p4": 0.0})
    again = Knapsack(unit=1)
    again.load_state_dict(rounds.state_dict())
    for each in (rounds, again):
        desk = Desk(dict.fromkeys(range(2), "10"), group_size=4)
        each.fill(batch_of([0, 1]), desk.source)
        assert desk.log[0][2] == [0] * 5 + [1] * 3
    again.load_state_dict({})
    assert again.state_dict() == {"rates": {}}


def test_groups_of_a_prompt_are_compared_with_each_other():
    """Two units of prompt 7, one of 5, and by hand its advantages: r - mean over all of a prompt's completions."""
    grid = ByPrompt([7, 5, 7])
    joined = grid.joined(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]))
    assert joined.nan_to_num(-1).tolist() == [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, -1.0, -1.0]]
    made = grid.split(GRPO(scale_by_std=False).advantages(joined), 2)
    assert made.tolist() == [[0.75, -0.25], [0.0, 0.0], [-0.25, -0.25]]
    assert grid.firsts == [0, 1]


# -- MostLearnable ----------------------------------------------------------------------------------------------------


def test_the_most_learnable_of_five_by_hand():
    """k/8 = 0, 2, 4, 8, 7: p (1 - p) = 0, .1875, .25, 0, .1094."""
    patterns = ["0", "11000000", "10", "1", "11111110"]
    desk = Desk(dict(enumerate(patterns)), waiting=[2, 3, 4, 5], group_size=8)
    generated, trained = MostLearnable(factor=2).fill(batch_of([0, 1]), desk.source)
    assert generated.batch.rows == [0, 1, 2, 3] and trained.batch.rows == [1, 2]
    desk = Desk(dict(enumerate(patterns)), waiting=[3, 4], group_size=8)
    generated, trained = MostLearnable(factor=4).fill(batch_of([0, 2]), desk.source)
    assert trained.batch.rows == [2, 4] and trained.rounds == [0, 1]
    assert refill_metrics(generated, trained)["rollouts/generated"] == 32


# -- in training ------------------------------------------------------------------------------------------------------

SMALL = Sampling(group_size=8, max_tokens=6, seed=3)
CASES = {
    "speed": lambda: Speed(3, 5, max_rounds=2),
    "knapsack": lambda: Knapsack(unit=2),
    "learnable": lambda: MostLearnable(2),
    "bank": lambda: VarianceBank(VarianceSchedule(0.5, 0.9, batches=3)),
}


def advantages_by_hand(step: GradedGroups) -> torch.Tensor:
    """(r - mean) / (std + 1e-4) over all completions of a prompt, whichever group they stand in."""
    found = torch.zeros_like(step.total)
    for row in set(step.batch.rows):
        groups = [group for group, other in enumerate(step.batch.rows) if other == row]
        values = torch.cat([step.total[group] for group in groups])
        for group in groups:
            if values.max() > values.min():
                found[group] = (step.total[group] - values.mean()) / (values.std() + 1e-4)
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_the_one_worked_anew(tiny, tmp_path, name):
    """SGD of rate .5 on - sum of A log pi a token, over all trained rows at once, with padding."""
    rounds = CASES[name]()
    if name == "knapsack":  # some rates are known
        known = {f"sum/{i % 10}+{i // 10}": (0.1, 0.5, 0.9)[i % 3] for i in range(24) if i % 4}
        rounds.load_state_dict = lambda state: rounds._rates.update(known)
    record = Record()
    made = module(tiny, rewards=[SomeNeverVary()], dynamic_sampling=rounds, max_grad_norm=None, sampling=SMALL)
    run = fit(made, data(), trainer(tmp_path, 1, (record,)))
    step, model = run.last_step, Policy(tiny).load_model()
    start = {key: value.clone() for key, value in model.state_dict().items()}
    rows, logged = step.rollouts, record.rows[0]
    sizes = {row: rows.group_size * step.batch.rows.count(row) for row in step.batch.rows}
    if name == "knapsack":
        assert sum(sizes.values()) == 32 and len(set(sizes.values())) > 1
        assert logged["rollouts/generated"] == 32
    else:
        assert set(sizes.values()) == {8} and logged["rollouts/generated"] > logged["rollouts/trained"]
    logits = model(
        rows.tokens, attention_mask=(torch.arange(rows.tokens.shape[1])[None] < rows.lengths[:, None])
    ).logits
    logprobs = torch.zeros(rows.tokens.shape)
    logprobs[:, 1:] = logits[:, :-1].float().log_softmax(-1).gather(2, rows.tokens[:, 1:, None])[..., 0]
    own, advantages = rows.mask.float(), advantages_by_hand(step)
    assert (advantages - step.advantages).abs().max() < 1e-6
    loss = -((advantages.flatten()[:, None] * logprobs * own).sum(1) / own.sum(1)).mean()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.5 * parameter.grad
    assert largest_difference(model.state_dict(), start) > 1e-3
    assert largest_difference(weights(run), model.state_dict()) < 2e-6


@pytest.mark.parametrize("objective", [ReinforcePP(baseline="group"), BNPO()], ids=["reinforce", "bnpo"])
def test_other_objectives_take_unequal_groups(tiny, tmp_path, objective):
    rounds = Knapsack()
    rounds.load_state_dict = lambda state: rounds._rates.update({f"sum/{i}+0": i / 10 for i in range(10)})
    run = fit(module(tiny, objective=objective, dynamic_sampling=rounds), data(), trainer(tmp_path, 2))
    assert largest_difference(weights(run), Policy(tiny).load_model().state_dict()) > 1e-4


@pytest.mark.parametrize("name", [*CASES, "knapsack and a belief"])
def test_a_resumed_run_is_the_whole_one(tiny, tmp_path, name):
    """Epochs of at most six batches; from the first step, an epoch's middle, and its end."""

    def run(folder: str, ckpt_path: Path | None = None):
        (tmp_path / folder).mkdir()
        witness = Witness(tmp_path / folder)
        rounds = CASES[name.split()[0]]()
        online = Selection(PromptBeta(), Nearest(0.5)) if "belief" in name else None
        made = module(tiny, rewards=[SomeNeverVary()], dynamic_sampling=rounds, sampling=SMALL)
        return fit(made, data(online=online), trainer(tmp_path, 9, (witness,)), ckpt_path=ckpt_path), witness, rounds

    whole, seen, learned = run("whole")
    ends = [step for step in range(1, 9) if seen.served[step] <= seen.served[step - 1]]
    assert len(seen.steps) == 9 and ends
    for step in (1, ends[0], min(8, ends[0] + 1)):
        resumed, again, restored = run(f"from-{step}", tmp_path / "whole" / f"{step}.ckpt")
        assert [each.batch.rows for each in again.steps] == [each.batch.rows for each in seen.steps[step:]], step
        assert largest_difference(weights(whole), weights(resumed)) == 0
        assert restored.state_dict() == learned.state_dict()
    if name == "knapsack":
        counts = [len(each.batch.rows) for each in seen.steps]
        assert set(counts) == {16} and any(
            len(set(map(each.batch.rows.count, each.batch.rows))) > 1 for each in seen.steps
        )


class Reading(Knapsack):
    """Notes what it is told of each step's prompts."""

    def fill(self, batch, source):
        self.told = [*getattr(self, "told", []), source.pass_rates(batch.rows)]
        return super().fill(batch, source)


def test_rates_are_what_the_online_operation_believes(tiny, tmp_path):
    """One half before the first group, (right + 1) / (graded + 2) behind it; nothing without such an operation."""
    for online in (Selection(PromptBeta(), Nearest(0.5)), None):
        rounds, witness = Reading(), Witness(tmp_path)
        made = module(tiny, rewards=[SomeNeverVary()], dynamic_sampling=rounds, sampling=SMALL)
        fit(made, data(online=online), trainer(tmp_path, 7, (witness,)))
        assert len(rounds.told) == 7 and all(np.isnan(told).all() == (online is None) for told in rounds.told)
        if online is not None:
            assert {*np.concatenate(rounds.told[:6])} == {0.5}
            row = witness.steps[6].batch.rows[0]
            counted = [step.total[[other == row for other in step.batch.rows]] for step in witness.steps[:6]]
            right, graded = sum(float(each.sum()) for each in counted), sum(each.numel() for each in counted)
            assert graded > 0 and rounds.told[6][0] == pytest.approx((right + 1) / (graded + 2))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"dynamic_sampling": Speed(4, 20)},
            r"screens with 4 completions and samples 20 more, and .*group_size is 8; write",
        ),
        ({"dynamic_sampling": Knapsack(unit=3)}, r"unit is 3, which does not divide sampling\.group_size 8"),
        (
            {"dynamic_sampling": VarianceBank(), "sampling": Sampling(group_size=1, max_tokens=6), "objective": BNPO()},
            r"reads the variance of a group, and sampling\.group_size is 1",
        ),
        ({"dynamic_sampling": Knapsack(least=9)}, r"group_size is 8, outside of Knapsack's least 9"),
        ({"dynamic_sampling": Knapsack(), "keep": PODS()}, r"PODS, which chooses within groups of 8, and .*Knapsack"),
    ],
)
def test_what_can_not_be_is_refused(tiny, tmp_path, changes, says):
    with pytest.raises(InputError, match=says):
        fit(module(tiny, **changes), data(), trainer(tmp_path, 1))


def test_numbers_out_of_range_are_refused():
    for make, says in (
        (lambda: Speed(1), r"Speed\.screen is 1; write a whole number from 2"),
        (lambda: Knapsack(most=3, least=4), r"Knapsack\.most is 3, below least 4"),
        (lambda: MostLearnable(1), r"MostLearnable\.factor is 1"),
        (lambda: VarianceBank(momentum=1.0), r"VarianceBank\.momentum is 1"),
    ):
        with pytest.raises(InputError, match=says):
            make()


@pytest.mark.slow
def test_two_processes_sample_and_train_as_one(tiny, tmp_path):
    run_on_one_and_two(Path(__file__).with_name("case_ranks.py"), tiny, tmp_path, *CASES)
    start = Policy(tiny).load_model().state_dict()
    for name in CASES:
        one, two = (torch.load(tmp_path / f"{name}-{ranks}.pt", weights_only=True) for ranks in (1, 2))
        assert largest_difference(one, two) < 2e-6 < 1e-3 < largest_difference(one, start), name
        alone, shared = (json.loads((tmp_path / f"{name}-{ranks}.json").read_text()) for ranks in (1, 2))
        for first, second in zip(alone, shared, strict=True):
            for key in ("rollouts/generated_tokens", "groups/tokens_per_effective", "groups/effective", "loss"):
                assert second[key] == pytest.approx(first[key], rel=1e-4, nan_ok=True), (name, key)
