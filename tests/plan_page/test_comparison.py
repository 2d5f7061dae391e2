"""Two plans compared: numbers worked by hand, and what must hold for any two."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saerl_lightning.errors import InputError
from saerl_lightning.plan import SamplePlan
from saerl_lightning.plan_page.comparison import PlanComparison, compare
from saerl_lightning.plan_page.ledger import Ledger
from saerl_lightning.records import Prompt


def ledger(rows, batch_size: int = 1, **fields) -> Ledger:
    """Of a plan over prompts named a, b, c …; `rows` is the order."""
    pool = fields.pop("pool", 4)
    plan = replace(SamplePlan.sequential(pool, batch_size), rows=np.array(rows), **fields)
    prompts = [Prompt.asking(chr(97 + i), f"text {i}", "1") for i in range(pool)]
    return Ledger.of(plan, prompts, f"{list(rows)}")


def test_two_plans_worked_by_hand():
    numbers = np.array([1.0, 2.0, 3.0, 4.0])
    before = ledger([0, 1, 2, 3], cluster=np.array([0, 0, 1, 1]), difficulty=numbers)
    after = ledger([1, 0, 3], cluster=np.array([5, 5, 2, 2]), difficulty=-numbers, dropped={2: "too long"})
    compared = compare(before, after)
    assert (compared.prompts, compared.changed, compared.served, compared.same_step) == (4, 1, 3, 0)
    assert compared.fates[("served", "dropped")] == 1
    assert compared.kendall == pytest.approx(1 / 3)  # a b d against b a d: one of three pairs is turned round
    assert compared.clusters == 1.0  # the same clusters under other numbers
    assert compared.difficulty == pytest.approx(-1.0)
    assert np.isnan(compared.quality)  # nothing rated
    moved = [(m.uid, m.before, m.after) for m in compared.movers]
    assert moved == [("a", 0, 1), ("b", 1, 0)]  # by shares of the epoch: 0 to 1/2, and 1/3 to 0; d is last in both
    assert not compared.identical


def test_the_ledgers_may_stand_in_another_order():
    here = ledger([0, 1, 2, 3], batch_size=2)
    turned = replace(here, **{name: getattr(here, name)[::-1] for name in ("uid", "fate", "cluster", "batch")})
    compared = compare(turned, here)
    assert compared.same_step == 4 and compared.kendall == 1.0


def test_ledgers_of_other_prompts_are_refused_with_counts():
    small, large = ledger([0, 1, 2]), ledger([0, 1, 2], pool=6)
    with pytest.raises(InputError, match="4 are in both, 0 only in the one to compare with, 2 only in this plan"):
        compare(small, large)
    with pytest.raises(InputError, match="2 only in the one to compare with, 0 only in this plan"):
        compare(large, small)


def numbers_of(compared: PlanComparison) -> tuple:
    return compared.changed, compared.served, compared.same_step, compared.kendall, compared.clusters


@given(st.permutations(range(12)), st.permutations(range(12)), st.integers(1, 5), st.integers(0, 8))
def test_comparing_any_two_plans_is_symmetric(one, other, batch_size, cut):
    """Comparing is symmetric, a plan equals itself, and the reverse of the whole order is as far as can be."""
    a, b = (ledger(rows, batch_size, pool=12) for rows in (one[cut // 2 :], other[: 12 - cut // 2]))
    there, back = compare(a, b), compare(b, a)
    np.testing.assert_allclose(numbers_of(there), numbers_of(back))
    itself = compare(a, a)
    assert itself.changed == 0 and itself.same_step == itself.served and not itself.movers and itself.identical
    whole = ledger(one, 1, pool=12)
    assert compare(whole, ledger(one[::-1], 1, pool=12)).kendall == pytest.approx(-1.0)
    assert sum(there.fates.values()) == 12
