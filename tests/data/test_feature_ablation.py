"""Columns taken out of a probe's sight: which ones, what matches them, and what the order loses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from saerl_lightning.data.curriculum import EasyToHard, WithoutFeatures
from saerl_lightning.data.features import activity, equally_active, top_columns, without
from saerl_lightning.data.probes import RidgeProbe, TreeProbe
from saerl_lightning.errors import InputError
from saerl_lightning.plan import SamplePlan
from saerl_lightning.records import Prompt

ROWS = np.array([[1.0, 0, 4, 0], [1, 2, 0, 0], [1, 0, 0, 3], [1, 2, 0, 0]])


@pytest.mark.parametrize("rows", [ROWS, csr_array(ROWS)], ids=["dense", "sparse"])
def test_columns_worked_by_hand(rows):
    assert activity(rows).tolist() == [1, 0.5, 0.25, 0.25]
    # Standard deviations 0, 1, sqrt(3), 3 sqrt(3)/4: the constant column moves nothing, whatever its weight.
    weights = np.array([9.0, -2.0, 1.0, 0.0])
    assert top_columns(weights, rows, 2).tolist() == [1, 2]
    assert top_columns(weights, rows, 9).tolist() == [1, 2]
    assert top_columns(weights, rows, 0).tolist() == []
    left = without(rows, np.array([0, 2]))
    dense = left if isinstance(left, np.ndarray) else left.toarray()
    assert dense.tolist() == [[0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 3], [0, 2, 0, 0]]
    assert (rows if isinstance(rows, np.ndarray) else rows.toarray()).tolist() == ROWS.tolist()


@given(seed=st.integers(0, 99), taken=st.integers(0, 20))
def test_random_columns_are_others_and_about_as_active(seed, taken):
    random = np.random.default_rng(seed)
    rows = (random.random((200, 60)) < np.linspace(0.05, 0.95, 60)).astype(float)
    columns = random.permutation(60)[:taken]
    drawn = equally_active(columns, rows, seed)
    assert len(set(drawn)) == taken and not set(drawn) & set(columns)
    assert np.array_equal(drawn, equally_active(columns, csr_array(rows), seed))
    if taken:
        share = activity(rows)
        assert abs(share[drawn].mean() - share[columns].mean()) < 0.25


def test_what_cannot_be_matched_is_refused():
    with pytest.raises(InputError, match="3 columns to match, but only 1 others"):
        equally_active(np.array([0, 1, 2]), ROWS, 0)
    with pytest.raises(InputError, match="3 weights and 4 columns"):
        top_columns(np.ones(3), ROWS, 1)


def world(n: int = 300, columns: int = 40) -> tuple[list[Prompt], csr_array, np.ndarray]:
    """Difficulty is the sum of the first two of many equally active columns."""
    rows = np.maximum(np.random.default_rng(0).standard_normal((n, columns)), 0)
    difficulty = 3 * rows[:, 0] + rows[:, 1]
    prompts = [
        Prompt.asking(f"p{i}", f"question {i}", "", labels={"difficulty": float(difficulty[i])}) for i in range(n)
    ]
    return prompts, csr_array(rows), difficulty


def rated(count: int, **settings) -> tuple[np.ndarray, dict[str, float]]:
    prompts, rows, _ = world()
    order = WithoutFeatures(EasyToHard(probe=RidgeProbe(alphas=(0.001,))), count, **settings)
    return order.difficulty(SamplePlan.sequential(300, 8), prompts, rows), order.metrics()


def test_the_order_loses_what_the_dose_takes_and_little_by_random_columns():
    prompts, rows, difficulty = world()
    whole = EasyToHard(probe=RidgeProbe(alphas=(0.001,))).difficulty(SamplePlan.sequential(300, 8), prompts, rows)
    none, metrics = rated(0)
    descending = WithoutFeatures(EasyToHard(probe=RidgeProbe(alphas=(0.001,)), descending=True), 0)
    assert np.allclose(descending.difficulty(SamplePlan.sequential(300, 8), prompts, rows), -whole)
    assert np.allclose(none, whole) and metrics["without/tau"] == 1 and metrics["without/columns"] == 0
    taus = [rated(count)[1]["without/tau"] for count in (0, 1, 2)]
    assert taus[0] > taus[1] + 0.2 > taus[2] + 0.2
    left, _ = rated(1)
    assert np.corrcoef(left, rows.toarray()[:, 1])[0, 1] > 0.98  # what is left is the second column
    for seed in range(3):
        assert rated(2, random=True, seed=seed)[1]["without/tau"] > 0.95
    assert np.corrcoef(whole, difficulty)[0, 1] > 0.99


def test_a_constant_rating_has_a_tau_of_zero_and_tree_probes_are_refused():
    prompts, rows, _ = world()
    plan = SamplePlan.sequential(300, 8)
    left, metrics = rated(40)
    assert np.ptp(left) == 0 and metrics["without/tau"] == 0
    with pytest.raises(InputError, match=r"WithoutFeatures.inner.probe is TreeProbe; write a linear one"):
        WithoutFeatures(EasyToHard(probe=TreeProbe(trees=2)), 1).difficulty(plan, prompts, rows)
    with pytest.raises(InputError, match="count is -1"):
        WithoutFeatures(EasyToHard(), -1)
