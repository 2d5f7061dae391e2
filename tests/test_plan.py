"""SamplePlan: what is served, and what its ledger says."""

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from saerl_lightning.plan import SamplePlan, misplaced


def test_ledger_tells_every_prompts_fate():
    plan = SamplePlan.sequential(7, 2).drop({1: "too long", 4: "too easy"}).reorder(np.array([6, 0, 3, 2, 5]))
    assert plan.batches().tolist() == [[6, 0], [3, 2]]
    ledger = plan.ledger()
    assert ledger["fate"].tolist() == ["served", "dropped", "served", "served", "dropped", "not served", "served"]
    assert ledger["batch"].tolist() == [0, -1, 1, 1, -1, -1, 0]
    assert ledger["reason"].tolist() == ["", "too long", "", "", "too easy", "left over: fills no whole batch", ""]


def test_dropping_keeps_the_order_the_reasons_and_the_input():
    plan = SamplePlan.sequential(5, 2).reorder(np.array([4, 2, 0, 1, 3]))
    once = plan.drop({2: "first"})
    twice = once.drop({4: "second"})
    assert twice.rows.tolist() == [0, 1, 3]
    assert twice.dropped == {2: "first", 4: "second"}
    assert plan.rows.tolist() == [4, 2, 0, 1, 3] and plan.dropped == {} and once.dropped == {2: "first"}
    assert twice.drop({}).rows.tolist() == [0, 1, 3]


@pytest.mark.parametrize("rows", [[0, 1, 1], [0, 1], [0, 1, 3]])
def test_an_order_may_not_lose_repeat_or_invent_prompts(rows):
    with pytest.raises(ValueError, match="permutation"):
        SamplePlan.sequential(3, 1).reorder(np.array(rows))


def test_fewer_prompts_than_a_batch_are_no_batch():
    assert SamplePlan.sequential(3, 4).batches().shape == (0, 4)


def test_columns_of_unequal_length_are_refused():
    plan = SamplePlan.sequential(3, 1)
    with pytest.raises(TypeCheckError):
        SamplePlan(plan.rows, 1, plan.cluster, plan.difficulty[:2], plan.quality, plan.mixed_from)


def test_a_plan_is_shown_in_a_line():
    plan = SamplePlan.sequential(7, 2).drop({1: "too long", 4: "too easy"})
    assert repr(plan) == "<SamplePlan: 7 prompts, 4 served, 1 not served, 2 dropped, in 2 batches of 2>"


def test_an_order_is_refused_with_the_row_that_is_wrong():
    plan = SamplePlan.sequential(4, 1)
    for rows, says in (
        ([0, 1, 1, 1], "row 1 3 times"),
        ([0, 1, 2, 9], "row 9, which is not planned"),
        ([0, 1, 3], "no row 2"),
    ):
        assert misplaced(np.array(rows), plan.rows) == says
    assert misplaced(np.array([3, 1, 0, 2]), plan.rows) == ""
