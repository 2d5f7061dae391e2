"""What every shipped belief and rule promises. A new one without an example in `examples.py` fails."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

import saerl_lightning.online.beliefs
import saerl_lightning.online.rules
from saerl_lightning.online.beliefs.belief import Belief
from saerl_lightning.online.rules.highest_chance import HighestChance
from saerl_lightning.online.rules.rule import Candidates, Rule
from saerl_lightning.online.selection import Selection
from saerl_lightning.plan import SamplePlan
from tests.data.served_prompts import outcomes_of_counts
from tests.online.examples import BELIEFS, DRAWING, RULES, N, begun, candidates, features, learn_one, pool, rng, served
from tests.shipped_classes import shipped

EVERY = np.arange(N)
TRUTH = np.linspace(0.05, 0.95, N)
BELIEF_EXAMPLES = [pytest.param(make, id=f"{name}{i}") for name, all_ in BELIEFS.items() for i, make in enumerate(all_)]
RULE_EXAMPLES = [pytest.param(rule, id=f"{name}{i}") for name, all_ in RULES.items() for i, rule in enumerate(all_)]


def test_every_shipped_belief_and_rule_is_tried_here():
    assert shipped(Belief, saerl_lightning.online.beliefs).keys() == BELIEFS.keys()
    assert shipped(Rule, saerl_lightning.online.rules).keys() == RULES.keys()


@pytest.mark.parametrize("make", BELIEF_EXAMPLES)
def test_a_belief_goes_on_from_its_state_to_the_last_bit(make, tmp_path):
    belief = begun(make)
    served(belief, TRUTH, np.arange(12))
    torch.save(belief.state_dict(), tmp_path / "state")
    before = np.array(belief.beta(EVERY))
    served(belief, TRUTH, np.arange(8, 20))
    resumed = begun(make)
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    np.testing.assert_array_equal(np.array(resumed.beta(EVERY)), before)
    served(resumed, TRUTH, np.arange(8, 20))
    np.testing.assert_array_equal(np.array(resumed.beta(EVERY)), np.array(belief.beta(EVERY)))
    np.testing.assert_array_equal(resumed.believe(EVERY, 8)[2], belief.believe(EVERY, 8)[2])
    assert resumed.metrics() == belief.metrics()


@pytest.mark.parametrize("make", BELIEF_EXAMPLES)
def test_a_state_is_a_copy_which_later_steps_leave_alone(make):
    belief = begun(make)
    served(belief, TRUTH, np.arange(12))
    state, then = belief.state_dict(), np.array(belief.beta(EVERY))
    served(belief, TRUTH, np.arange(12))
    belief.load_state_dict(state)
    served(belief, TRUTH, np.arange(12, 24))
    belief.load_state_dict(state)
    np.testing.assert_array_equal(np.array(belief.beta(EVERY)), then)


@pytest.mark.parametrize("make", BELIEF_EXAMPLES)
def test_a_belief_begins_anew(make):
    """`begin` forgets all that was learned, as a play that is repeated needs."""
    belief = begun(make)
    before = np.array(belief.beta(EVERY))
    served(belief, TRUTH, np.arange(12))
    assert not np.array_equal(np.array(belief.beta(EVERY)), before)
    belief.begin(pool(), features())
    np.testing.assert_array_equal(np.array(belief.beta(EVERY)), before)


@pytest.mark.parametrize("make", BELIEF_EXAMPLES)
def test_the_order_of_what_is_asked_and_of_a_steps_groups_does_not_matter(make):
    one, other, random = begun(make), begun(make), rng()
    for _ in range(3):
        rows = random.choice(N, 5, replace=False)
        right, graded = random.integers(0, 9, 5).astype(float), np.full(5, 8.0)
        shuffled = random.permutation(5)
        one.learn(rows, right, graded)
        other.learn(rows[shuffled], right[shuffled], graded)
    asked = random.permutation(N)
    np.testing.assert_allclose(np.array(other.beta(asked)), np.array(one.beta(EVERY))[:, asked], rtol=1e-9)
    np.testing.assert_allclose(other.believe(asked, 4)[2], one.believe(EVERY, 4)[2][asked], rtol=1e-9)


@pytest.mark.parametrize("make", BELIEF_EXAMPLES)
@pytest.mark.parametrize(("right", "graded"), [(0, 8), (8, 8), (0, 1), (1, 1), (2.5, 7), (512, 512)])
def test_a_belief_stays_a_beta_whatever_comes(make, right, graded):
    belief = begun(make)
    for _ in range(30):
        belief.learn(np.arange(4), np.full(4, float(right)), np.full(4, float(graded)))
    a, b = belief.beta(EVERY)
    assert np.isfinite([a, b]).all()
    assert (np.minimum(a, b) > 0).all()
    chance = belief.believe(EVERY, 8)[2]
    assert ((chance >= 0) & (chance <= 1)).all()
    if right in (0, graded) and graded >= 8:
        assert chance[:4].max() < 0.75  # after thirty groups that did not vary


@pytest.mark.parametrize("make", BELIEF_EXAMPLES)
def test_a_belief_learns_of_a_prompt_that_is_served_again_and_again(make):
    """One that is always right, another never, six times: more than .2 lie between them, and in that order."""
    belief = begun(make)
    for _ in range(6):
        belief.learn(np.array([3, 6]), np.array([8.0, 0.0]), np.array([8.0, 8.0]))
    a, b = belief.beta(np.array([3, 6]))
    right, wrong = a / (a + b)
    assert right - wrong > 0.2


@pytest.mark.parametrize("make", BELIEF_EXAMPLES)
def test_groups_without_a_grade_teach_nothing(make):
    """A step of none changes no state, and one of a graded and an ungraded group is one of the graded alone."""
    operation, alone = Selection(make(), HighestChance()), begun(make)
    operation.apply(SamplePlan.sequential(N, 4), pool(), features())
    before = np.array(operation.belief.beta(EVERY))
    operation.observe(outcomes_of_counts(["p3", "p7"], [0.0, 0.0], graded=0))
    np.testing.assert_array_equal(np.array(operation.belief.beta(EVERY)), before)
    half = outcomes_of_counts(["p3", "p7"], [0.0, 5.0])
    half.graded[0] = 0
    operation.observe(half)
    learn_one(alone, 7, 5.0)
    np.testing.assert_array_equal(np.array(operation.belief.beta(EVERY)), np.array(alone.beta(EVERY)))
    assert np.isfinite(before).all()


@given(
    some.lists(some.tuples(some.floats(0.01, 0.99), some.integers(0, 2)), min_size=1, max_size=20),
    some.integers(1, 6),
    some.sampled_from([rule for examples in RULES.values() for rule in examples]),
)
def test_a_rule_serves_each_prompt_once_and_those_that_wait_last(pairs, batch_size, rule):
    rates, seen = zip(*pairs, strict=True)
    left = candidates(rates, batch_size=batch_size, seen=seen)
    made = rule.arrange(left, rng())
    assert sorted(made.order.tolist()) == list(range(len(rates)))
    if made.waits is not None:
        assert (np.diff(made.waits[made.order].astype(int)) >= 0).all()
    if made.waits is not None or made.excluded is not None:
        assert made.reason
    again = rule.arrange(left, rng())
    assert made.order.tolist() == again.order.tolist()


@pytest.mark.parametrize("name", sorted(RULES.keys() - DRAWING))
def test_equal_beliefs_keep_the_order_of_the_plan(name):
    for rule in RULES[name]:
        assert rule.arrange(candidates([0.5] * 6), rng()).order.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", sorted(RULES.keys() - DRAWING))
def test_which_prompts_come_next_does_not_depend_on_their_order_before(name):
    """Only ties may."""
    random = rng()
    rates = random.permutation(np.linspace(0.03, 0.97, 20) ** 1.3)  # no two are as far from one half
    shuffled = random.permutation(20)
    for rule in RULES[name]:
        if name in ("Admit", "ExcludeSolved"):
            continue  # they keep the plan's order
        first = rule.arrange(candidates(rates, batch_size=5), rng()).order[:5]
        second = rule.arrange(candidates(rates[shuffled], batch_size=5), rng()).order[:5]
        assert shuffled[second].tolist() == first.tolist()


@pytest.mark.parametrize("rule", RULE_EXAMPLES)
def test_a_rule_does_not_change_its_candidates(rule):
    left = candidates([0.1, 0.5, 0.9, 0.4], seen=[0, 1, 2, 0])
    for array in (left.rows, left.a, left.b, left.varies, left.seen, left.cluster):
        array.setflags(write=False)
    assert isinstance(rule.arrange(left, rng()).order, np.ndarray)


@pytest.mark.parametrize("name", sorted(DRAWING))
def test_a_drawing_rule_draws_others_another_time(name):
    rule = RULES[name][0]
    left: Candidates = candidates([0.5] * 40, batch_size=5)
    orders = {tuple(rule.arrange(left, rng(seed)).order[:5].tolist()) for seed in range(10)}
    assert len(orders) > 5
