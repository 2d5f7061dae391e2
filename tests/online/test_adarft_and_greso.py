"""AdaRFT and GRESO: numbers worked by hand, coins that re-asking does not throw again, epochs, states, bad input."""

import numpy as np
import pytest
import torch

from saerl_lightning.data.planning import make_plan
from saerl_lightning.data.revision import revise
from saerl_lightning.errors import InputError
from saerl_lightning.online.adarft import AdaRFT
from saerl_lightning.online.greso import GRESO, moved_chances, skip_chances
from saerl_lightning.records import Prompt
from tests.data.served_prompts import outcomes_of_counts as outcomes


def prompts(difficulties) -> list[Prompt]:
    return [Prompt.asking(f"p{i}", f"word {i}", labels={"difficulty": float(d)}) for i, d in enumerate(difficulties)]


def planned(operation, difficulties=(10, 40, 50, 90), batch_size=2):
    return make_plan(prompts(difficulties), {}, batch_size, None, None, {"online": operation})


def rows(operation, plan, served=0) -> list[int]:
    return revise([operation], plan, plan.rows[:served]).rows.tolist()


def test_the_target_follows_the_reward_and_the_nearest_are_served():
    """T = 20, R = .75: 20 + 50 tanh .5 = 43.1059, so 40 and 50; R = .25 from 20 is cut off at 0, so 10 and 40."""
    operation = AdaRFT(start=20.0)
    plan = planned(operation)
    operation.observe(outcomes(["p0", "p1"], [4.0, 8.0]))
    assert operation.metrics()["target"] == pytest.approx(43.1059, abs=1e-4)
    assert rows(operation, plan) == [1, 2, 0, 3]
    low = AdaRFT(start=20.0)
    plan = planned(low)
    low.observe(outcomes(["p0", "p1"], [4.0, 0.0]))
    assert low.metrics()["target"] == 0.0
    assert rows(low, plan) == [0, 1, 2, 3]
    assert rows(low, plan, served=2) == [0, 1, 2, 3]


def test_the_mean_reward_counts_answers_that_are_graded():
    """8 of 8 beside 0 of 2 is .8, and not 1/2: tanh(2 * .3) = .5370."""
    operation = AdaRFT()
    planned(operation)
    given = outcomes(["p0", "p1"], [8.0, 0.0])
    given.graded[1] = 2
    operation.observe(given)
    assert operation.target == pytest.approx(50 * np.tanh(0.6))


def test_adarft_goes_on_from_its_checkpoint():
    operation, other = AdaRFT(), AdaRFT()
    plan = planned(operation)
    planned(other)
    operation.observe(outcomes(["p0", "p1"], [8.0, 8.0]))
    other.load_state_dict(operation.state_dict())
    assert other.target == operation.target > 0
    assert rows(other, plan) == rows(operation, plan)
    planned(other)
    assert other.target == 0.0  # begins anew


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: AdaRFT(start=120.0),
            r"AdaRFT\.start is 120; write a difficulty from easiest \(0\) to hardest \(100\)",
        ),
        (lambda: AdaRFT(reward=1.5), r"AdaRFT\.reward is 1\.5"),
        (lambda: planned(AdaRFT(label="level")), r"AdaRFT\.label is 'level', but no prompt has it"),
        (lambda: GRESO(easy=0.0), r"GRESO\.easy is 0\.0"),
    ],
)
def test_bad_settings_are_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()


def test_a_prompt_without_its_label_is_refused_by_name():
    given = [*prompts([10, 20]), Prompt.asking("bare", "word")]
    with pytest.raises(
        InputError, match=r"AdaRFT needs 'difficulty' .* 1 of 3 planned prompts lack it \(first: 'bare'\)"
    ):
        make_plan(given, {}, 1, None, None, {"online": AdaRFT()})


def test_chances_to_skip_are_the_tables():
    """P = .5, streaks 0, 1, 2, 7: 0, .5, .75, .99, since 2^-7 is below the floor of .01."""
    streaks = np.array([[0, 0], [1, 0], [2, 0], [7, 0]], dtype=float)
    found = skip_chances(streaks, np.array([0.5, 0.9]))
    assert found[:, 0].tolist() == [0, 0.5, 0.75, 0.99]
    assert found[:, 1].tolist() == [0, 0, 0, 0]


def test_base_chances_move_as_in_the_table():
    """The target .25 is 1/12 for all right and 1/6 for all wrong."""
    half = np.array([0.5, 0.5])
    assert moved_chances(half, np.array([0.10, 0.10]), 0.25) == pytest.approx([0.49, 0.51])
    assert moved_chances(half, np.array([0.05, 0.20]), 0.25) == pytest.approx([0.51, 0.49])
    assert moved_chances(half, np.array([0.08, 0.16]), 0.25) == pytest.approx([0.51, 0.51])
    assert moved_chances(half, np.array([0.09, 0.17]), 0.25) == pytest.approx([0.49, 0.49])
    assert moved_chances(np.array([0.05, 0.95]), np.array([1.0, 0.0]), 0.25) == pytest.approx([0.05, 0.95])


def epoch(operation, right, batch_size=2) -> None:
    """Serves p0, p1, ... in their order with the given right answers of 8."""
    for start in range(0, len(right), batch_size):
        uids = [f"p{row}" for row in range(start, min(start + batch_size, len(right)))]
        operation.observe(outcomes(uids, right[start : start + batch_size]))


def test_streaks_are_counted_and_the_chances_rest_in_the_first_epoch():
    operation = GRESO()
    planned(operation)
    epoch(operation, [8.0, 0.0, 3.0, 8.0])
    state = operation.state_dict()
    assert state["streaks"].tolist() == [[1, 0], [0, 1], [0, 0], [1, 0]]
    assert state["chances"].tolist() == [0.5, 0.5]
    epoch(operation, [8.0, 3.0, 0.0, 0.0])
    assert operation.state_dict()["streaks"].tolist() == [[2, 0], [0, 0], [0, 1], [0, 1]]
    assert operation.metrics()["easy"] == pytest.approx(0.5)  # half of the first step's groups, none of the second's
    assert operation.metrics()["hard"] == pytest.approx(0.5)  # none of the first step's, all of the second's
    operation.observe(outcomes(["p0", "p1"], [8.0, 8.0]))
    assert (operation.metrics()["easy"], operation.metrics()["hard"]) == pytest.approx((0.49, 0.51))


def solved(seed=0, skip=False, count=200, **others) -> tuple[GRESO, object]:
    """After one epoch that was all right."""
    operation = GRESO(skip=skip, seed=seed, **others)
    plan = planned(operation, np.zeros(count), batch_size=4)
    epoch(operation, [8.0] * count, 4)
    return operation, plan


def test_half_wait_after_one_group_and_the_coin_is_thrown_once_an_epoch():
    operation, plan = solved()
    first = rows(operation, plan)
    waits = operation._waiting.copy()
    assert 70 < len(waits) < 130  # 100 of 200, to four standard deviations of 7
    assert first[200 - len(waits) :] == waits.tolist()
    again = rows(operation, plan)
    assert again == first
    served = np.array(first[:4])
    operation.observe(outcomes([f"p{row}" for row in served], [4.0] * 4))
    revise([operation], plan, served)
    kept = operation._waiting  # by the same coins, but the chance to be served rose from .5 to .51
    assert set(kept.tolist()) <= set(waits.tolist()) and len(waits) - len(kept) < 8
    assert operation.history.reasons == ["", "its latest groups did not vary"]


def test_another_epoch_or_seed_has_other_coins():
    operation, plan = solved()
    rows(operation, plan)
    first = operation._waiting.copy()
    epoch(operation, [3.0] * 200, 4)  # the streaks end
    epoch(operation, [8.0] * 200, 4)
    operation._chances[:] = 0.5
    rows(operation, plan)
    assert 40 < len(np.intersect1d(first, operation._waiting)) < 75  # 50 by chance
    other, plan = solved(seed=1)
    rows(other, plan)
    assert 25 < len(np.intersect1d(first, other._waiting)) < 75


def test_skipped_prompts_are_left_out_of_the_epoch_and_come_back():
    operation, plan = solved(skip=True)
    left = revise([operation], plan, plan.rows[:0])
    assert 70 < len(left.rows) < 130
    assert set(left.dropped.values()) == {"its latest groups did not vary"}
    assert sorted([*left.rows.tolist(), *left.dropped]) == list(range(200))
    epoch(operation, [3.0] * 200, 4)
    assert len(rows(operation, plan)) == 200


def test_an_epoch_of_skipped_prompts_alone_is_served_all_the_same():
    operation, plan = solved(skip=True, count=8)
    operation._streaks[:] = [50.0, 0.0]  # .01 each
    assert sorted(rows(operation, plan)) == list(range(8))


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_the_epoch_is_known_at_its_start_in_its_middle_and_with_batches_fetched_ahead(ahead):
    """22 prompts in batches of 4: two are left over in each epoch, now these, now those."""
    operation = GRESO()
    planned(operation, np.zeros(22), batch_size=4)
    random = np.random.default_rng(0)
    orders = [random.permutation(22)[:20].reshape(5, 4) for _ in range(3)]
    for number, order in enumerate(orders):
        for step in range(5):
            handed_out = order[: min(step + ahead, 5)].ravel()
            rest = np.setdiff1d(np.arange(22), handed_out)
            assert operation._epoch(rest) == number, (number, step)
            operation.observe(outcomes([f"p{row}" for row in order[step]], [8.0] * 4))


def test_greso_goes_on_from_its_checkpoint(tmp_path):
    operation, plan = solved()
    torch.save(operation.state_dict(), tmp_path / "state")
    other = GRESO()
    planned(other, np.zeros(200), batch_size=4)
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for each in (operation, other):
        each.observe(outcomes(["p3", "p1"], [8.0, 0.0]))
    assert rows(other, plan) == rows(operation, plan)
    torch.testing.assert_close(other.state_dict()["streaks"], operation.state_dict()["streaks"], rtol=0, atol=0)
    assert other.metrics() == operation.metrics()
