"""Rules that draw at random, pools, learnability and exclusion: numbers worked by hand, shares of draws, bad settings."""

import numpy as np
import pytest
from scipy.special import softmax

from saerl_lightning.data.planning import make_plan
from saerl_lightning.data.revision import revise
from saerl_lightning.errors import InputError, RunStopped
from saerl_lightning.online.beliefs.last_rate import LastRate
from saerl_lightning.online.beliefs.prompt_beta import PromptBeta
from saerl_lightning.online.rules.admit import Admit
from saerl_lightning.online.rules.exclude_solved import ExcludeSolved
from saerl_lightning.online.rules.learnability import Learnability
from saerl_lightning.online.rules.rule import drawn_first
from saerl_lightning.online.rules.softmax_learnability import SoftmaxLearnability
from saerl_lightning.online.rules.softmax_nearest import SoftmaxNearest
from saerl_lightning.online.rules.weighted_pools import WeightedPools
from saerl_lightning.online.selection import Selection
from saerl_lightning.records import Prompt
from tests.data.served_prompts import outcomes_of_counts as outcomes
from tests.online.examples import candidates, rng

DRAWS = 4000
NEAR = 4 * 0.5 / np.sqrt(DRAWS)  # four standard errors of a share


def shares(rule, left) -> np.ndarray:
    """How often each candidate is the first."""
    random = rng()
    first = [rule.arrange(left, random).order[0] for _ in range(DRAWS)]
    return np.bincount(first, minlength=len(left.rows)) / DRAWS


def test_drawing_by_noise_is_drawing_one_after_the_other_without_replacement():
    """Weights 3, 2, 1: the pair (first, second) has the chance 3/6 * 2/3 = 1/3, and so on."""
    random, logits = rng(), np.log([3.0, 2.0, 1.0])
    pairs = [tuple(drawn_first(logits, 2, random)[:2].tolist()) for _ in range(DRAWS)]
    chances = {
        (0, 1): 3 / 6 * 2 / 3,
        (0, 2): 3 / 6 / 3,
        (1, 0): 2 / 6 * 3 / 4,
        (1, 2): 2 / 6 / 4,
        (2, 0): 1 / 6 * 3 / 5,
    }
    for pair, chance in chances.items():
        assert pairs.count(pair) / DRAWS == pytest.approx(chance, abs=NEAR), pair


def test_what_is_not_drawn_keeps_the_order_of_the_plan():
    order = drawn_first(np.zeros(10), 3, rng())
    assert np.all(np.diff(order[3:]) > 0)
    never = drawn_first(np.array([-np.inf, 0, -np.inf, 0]), 3, rng())
    assert sorted(never[:2].tolist()) == [1, 3] and never[2:].tolist() == [0, 2]


def test_procurl_draws_by_the_tables_chances():
    """Beta 20, p = .5, .9, 0: e^5 : e^1.8 : 1 = .9547, .0389, .0064."""
    found = shares(SoftmaxLearnability(20.0), candidates([0.5, 0.9, 0.0], size=1.0))
    assert found == pytest.approx([0.9547, 0.0389, 0.0064], abs=0.012)
    assert found[1] == pytest.approx(0.0389, abs=4 * np.sqrt(0.0389 * 0.9611 / DRAWS))


def test_draws_near_a_target_have_the_tables_chances():
    """Temperature .1, p = .5, .6: 1 / (1 + 1/e) = .7311, .2689."""
    found = shares(SoftmaxNearest(0.5, 0.1), candidates([0.5, 0.6]))
    assert found == pytest.approx([0.7311, 0.2689], abs=NEAR)


def test_pools_have_the_tables_chances():
    """Unseen, .1, .5, 1 with pools (.2: .5), (.8: 1), (1: .1): weights (1, .5, 1, .1) of 2.6 in all."""
    rule = WeightedPools((0.2, 0.8, 1.0), (0.5, 1.0, 0.1), unseen=1.0)
    left = candidates([0.9, 0.1, 0.5, 1.0], seen=[0, 1, 1, 1])
    assert rule.weighed(left).tolist() == [1.0, 0.5, 1.0, 0.1]
    assert shares(rule, left) == pytest.approx(np.array([1, 0.5, 1, 0.1]) / 2.6, abs=NEAR)


def test_a_rate_at_a_bound_is_in_the_lower_pool_and_one_above_all_in_the_last():
    rule = WeightedPools((0.2, 0.5), (3.0, 7.0))
    assert rule.weighed(candidates([0.2, 0.200002, 0.5, 0.9], seen=[1] * 4)).tolist() == [3.0, 7.0, 7.0, 7.0]


def test_the_most_learnable_come_first():
    """Of 8: 0, 2, 4, 8, 7 right give 0, .1875, .25, 0, .1094."""
    made = Learnability().arrange(candidates(np.array([0, 2, 4, 8, 7]) / 8), rng())
    assert made.order.tolist() == [2, 1, 0, 3, 4]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: WeightedPools((0.5,), (1.0, 2.0)), "bounds has 1 entries and weights 2; write one weight a pool"),
        (lambda: WeightedPools((), ()), "bounds has 0 entries"),
        (lambda: WeightedPools((0.5, 0.2), (1.0, 2.0)), r"bounds is \[0\.5, 0\.2\]; write rising numbers"),
        (lambda: WeightedPools((0.5, 0.5), (1.0, 2.0)), "write rising numbers"),
        (lambda: WeightedPools((0.5, 2.0), (1.0, 2.0)), r"WeightedPools\.bounds is .*2\.0"),
        (lambda: WeightedPools((0.5, 1.0), (1.0, -2.0)), r"WeightedPools\.weights is .*-2\.0"),
        (lambda: SoftmaxNearest(temperature=0.0), r"SoftmaxNearest\.temperature is 0\.0"),
        (lambda: ExcludeSolved(0.0), r"ExcludeSolved\.threshold is 0\.0"),
    ],
)
def test_bad_settings_are_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()


def prompts(count: int) -> list[Prompt]:
    return [Prompt.asking(f"p{i}", f"word {i}") for i in range(count)]


@pytest.mark.parametrize(("group", "least", "most"), [(2, 0.6, "0.5"), (4, 0.9, "0.875")])
def test_a_threshold_that_no_group_can_reach_is_refused(group, least, most):
    """Two answers differ with a chance of 2 * (1/2)^2 = .5 at most, four with 1 - 2/16."""
    operation = Selection(PromptBeta(), Admit(least))
    operation.group_size = group
    said = rf"Admit\.least is {least}, and a group of {group} varies with a chance of at most {most} .*; write less"
    with pytest.raises(InputError, match=said):
        make_plan(prompts(4), {}, 2, None, None, {"online": operation})
    operation.rule = Admit(float(most))
    make_plan(prompts(4), {}, 2, None, None, {"online": operation})


def test_what_is_solved_is_served_no_more_and_the_reason_is_kept():
    """7 of 8 is .875: excluded; 6 of 8 is not; a prompt that has no group is not, whatever its prior."""
    operation = Selection(LastRate(), ExcludeSolved(0.875))
    plan = make_plan(prompts(6), {}, 2, None, None, {"online": operation})
    operation.observe(outcomes(["p0", "p1"], [7.0, 6.0]))
    operation.observe(outcomes(["p2", "p3"], [8.0, 0.0]))
    later = revise([operation], plan, plan.rows[:0])
    assert later.rows.tolist() == [1, 3, 4, 5]
    assert later.dropped == {0: "pass rate from 0.875", 2: "pass rate from 0.875"}
    lucky = Selection(PromptBeta(right=20.0), ExcludeSolved(0.8))
    plan = make_plan(prompts(6), {}, 2, None, None, {"online": lucky})
    assert revise([lucky], plan, plan.rows[:0]).rows.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_run_ends_when_all_is_solved():
    """Within an epoch what is left may be too little; the next epoch must have a batch."""
    operation = Selection(LastRate(), ExcludeSolved())
    plan = make_plan(prompts(5), {}, 2, None, None, {"online": operation})
    operation.observe(outcomes(["p0", "p1"], [8.0, 8.0]))
    operation.observe(outcomes(["p2", "p3"], [8.0, 8.0]))
    assert revise([operation], plan, plan.rows[:4]).rows.tolist() == [0, 1, 2, 3, 4]
    said = r"data\.online \(Selection\) excludes 4 of 5 prompts \(pass rate from 0\.875\), which leaves no batch of 2"
    with pytest.raises(RunStopped, match=said):
        revise([operation], plan, plan.rows[:0])


def test_procurls_chances_are_those_of_a_softmax():
    """Against SciPy, for the whole pool."""
    rates = np.linspace(0.1, 0.9, 5)
    found = shares(SoftmaxLearnability(5.0), candidates(rates))
    assert found == pytest.approx(softmax(5 * rates * (1 - rates)), abs=NEAR)
