"""The study's statistics against numbers worked by hand, tables of Student's t, and synthetic studies of known truth."""

import importlib.util
import sys
from itertools import pairwise
from math import isnan, nan, sqrt
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saerl_lightning.errors import InputError
from saerl_lightning.study.accuracy_intervals import (
    VarianceComponents,
    accuracy_difference,
    detectable_differences,
    resampled_differences,
)
from saerl_lightning.study.statistics import (
    detectable_difference,
    holm,
    mean_estimate,
    paired_difference,
    sign_flip_p,
    t_p,
    t_quantile,
)

T1, T2, T4 = 12.7062, 4.3027, 2.7764  # .975 quantiles of Student's t, from its table
FOUR = ((1.0, 4.0),)


def close(value: float, rel: float = 1e-4) -> object:
    return pytest.approx(value, rel=rel)


# -- few seeds ------------------------------------------------------------------------------------------------------------


def test_a_paired_difference_by_hand():
    """Differences 1, 2, 3, 4, 5: mean 3, variance 2.5, error sqrt(2.5/5); t = 4.2426 with 4 degrees: p = .0132."""
    found = paired_difference([11.0, 22, 33, 44, 55], [10.0, 20, 30, 40, 50])
    assert (found.value, found.error, found.pairs) == (3.0, pytest.approx(sqrt(0.5)), 5)
    assert (found.low, found.high) == (close(3 - T4 * sqrt(0.5)), close(3 + T4 * sqrt(0.5)))
    assert found.p == close(0.01324, rel=1e-3)


@pytest.mark.parametrize("values", [[7.0], [0.3, 0.3, 0.3], [0.0, 0.0]])
def test_what_does_not_vary_has_a_mean_and_no_interval(values):
    found = mean_estimate(values)
    assert found.value == pytest.approx(values[0])
    assert all(isnan(number) for number in (found.low, found.high, found.p, found.error))


def test_the_sign_flip_p_by_hand():
    """Differences 1, 2, -1: |sum| is 2; of the 8 sums 4, 0, 2, -2, 2, -2, 0, -4 six are at least that far out."""
    assert sign_flip_p([1.0, 2, 0], [0.0, 0, 1]) == 6 / 8
    assert sign_flip_p([0.1, 0.2, 0.3, 0.4, 0.5], [0.0] * 5) == 2 / 32  # the least that five pairs can give


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=6))
def test_the_sign_flip_p_does_not_know_which_arm_is_which(values):
    zeros = [0.0] * len(values)
    assert sign_flip_p(values, zeros) == sign_flip_p(zeros, values) >= 2 / 2 ** len(values)


@given(st.floats(-6, 6), st.floats(0, 1))
def test_an_interval_ends_at_zero_just_where_its_p_says(t, share):
    parts = ((share, 4.0), (1 - share, 300.0))
    p = t_p(t, parts)
    assert t_quantile(1 - p / 2, parts) == pytest.approx(abs(t), abs=1e-6)


def test_the_detectable_difference_is_bloom_s_sum_of_quantiles():
    """Table values at 4 degrees: 2.7764 for .975, .9410 for .8; many degrees: 1.9600 + .8416."""
    assert detectable_difference(2.0, FOUR) == close(2 * (2.7764 + 0.9410))
    assert detectable_difference(1.0, ((1.0, 1e6),)) == close(1.9600 + 0.8416)
    assert detectable_difference(1.0, FOUR, alpha=0.01) == close(4.6041 + 0.9410)


def test_numbers_that_cannot_be_compared_are_refused():
    with pytest.raises(InputError, match="2 runs against 1"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(InputError, match="finite number"):
        mean_estimate([1.0, nan])
    with pytest.raises(InputError, match="at least one"):
        mean_estimate([])
    with pytest.raises(InputError, match="at most 20"):
        sign_flip_p([1.0] * 21, [0.0] * 21)


# -- several comparisons --------------------------------------------------------------------------------------------------


def test_holm_by_hand():
    """Sorted .01, .02, .03, .4: times 4, 3, 2, 1 gives .04, .06, .06, .4; the third may not fall below the second."""
    found = holm({"c": 0.03, "a": 0.01, "d": 0.4, "b": 0.02})
    assert list(found) == ["c", "a", "d", "b"]
    assert {name: each.adjusted for name, each in found.items()} == pytest.approx(
        {"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.4}
    )
    assert [name for name, each in found.items() if each.rejected] == ["a"]


def test_a_comparison_that_failed_stays_in_the_family():
    found = holm({"a": 0.02, "failed": nan, "b": 0.9})
    assert found["a"].adjusted == pytest.approx(0.06) and not found["a"].rejected
    assert isnan(found["failed"].adjusted) and not found["failed"].rejected
    assert found["b"].adjusted == 1.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.01, 0.2))
def test_holm_rejects_as_the_step_down_does(values, alpha):
    """The step-down as Holm wrote it: go up the sorted p-values while p <= alpha / (m - i), stop at the first that is not."""
    count = 0
    while count < len(values) and sorted(values)[count] * (len(values) - count) <= alpha:
        count += 1
    found = holm({str(i): value for i, value in enumerate(values)}, alpha)
    assert sum(each.rejected for each in found.values()) == count
    ordered = sorted(found.values(), key=lambda each: each.p)
    assert all(left.adjusted <= right.adjusted for left, right in pairwise(ordered))


def test_a_p_value_above_one_is_refused():
    with pytest.raises(InputError, match=r"1\.5"):
        holm({"a": 1.5})


# -- seeds and questions --------------------------------------------------------------------------------------------------

# Rows .4 and .2 (variance .02), columns .4, .1, .4 (variance .03), rest ±.1 in four cells (.04 over 1·2 degrees).
TABLE = np.array([[0.6, 0.2, 0.4], [0.2, 0.0, 0.4]])
BASELINE = np.array([[0.1, 0.2, 0.3], [0.4, 0.3, 0.2]])


def test_the_error_of_a_crossed_table_by_hand():
    found, parts = accuracy_difference({"s": BASELINE + TABLE}, {"s": BASELINE})
    assert (parts.seed, parts.question, parts.residual) == (close(0.02 / 2), close(0.03 / 3), close(0.02 / 6))
    assert found.value == close(0.3) and found.error == close(sqrt(0.01 + 0.01 - 0.02 / 6)) and found.pairs == 2
    assert found.shares == ((close(0.6), 1.0), (close(0.4), close(2.0)))
    assert found.high - found.value == close((0.6 * T1 + 0.4 * T2) * found.error)


def test_two_equal_sets_share_the_seeds_luck_and_not_the_questions():
    one = {"s": BASELINE + TABLE}, {"s": BASELINE}
    both = {"s": BASELINE + TABLE, "t": BASELINE + TABLE}, {"s": BASELINE, "t": BASELINE}
    (single, parts), (double, halved) = accuracy_difference(*one), accuracy_difference(*both)
    assert double.value == close(single.value) and halved.seed == close(parts.seed)
    assert (halved.question, halved.residual) == (close(parts.question / 2), close(parts.residual / 2))
    assert halved.question_dof == close(4.0)  # two sets with 2 degrees each


def test_sets_count_alike_whatever_their_size():
    large = np.full((2, 50), 0.1) + np.array([[0.0], [0.02]])
    found, _ = accuracy_difference({"s": TABLE, "t": large}, {"s": 0 * TABLE, "t": 0 * large})
    assert found.value == close((0.3 + 0.11) / 2)


def test_arms_that_swap_swap_the_interval():
    arm, other = {"s": BASELINE + TABLE}, {"s": BASELINE}
    (there, _), (back, _) = accuracy_difference(arm, other), accuracy_difference(other, arm)
    assert (back.value, back.low, back.high, back.p) == pytest.approx((-there.value, -there.high, -there.low, there.p))


def test_a_question_without_a_grade_is_left_out_everywhere():
    hole = np.hstack([TABLE, [[nan], [0.9]]])
    found, _ = accuracy_difference({"s": hole}, {"s": np.zeros((2, 4))})
    assert found.value == close(0.3)


def test_one_seed_has_a_difference_and_no_interval():
    found, parts = accuracy_difference({"s": TABLE[:1]}, {"s": 0 * TABLE[:1]})
    assert found.value == close(0.4) and isnan(found.low) and isnan(found.p) and isnan(parts.error)


def test_equal_arms_have_no_interval():
    found, _ = accuracy_difference({"s": TABLE}, {"s": TABLE})
    assert found.value == 0 and isnan(found.p)


def test_the_drawn_bootstrap_has_the_variance_of_its_closed_form():
    """Crossed draws: .01/2 from rows, .02/3 from columns, .04/6/6 from the rest (all with divisor n): .012778."""
    draws = resampled_differences({"s": BASELINE + TABLE}, {"s": BASELINE}, draws=40_000, seed=1)
    assert draws.mean() == pytest.approx(0.3, abs=0.003)
    assert draws.var() == pytest.approx(0.01 / 2 + 0.02 / 3 + 0.04 / 36, rel=0.03)


def test_a_plan_of_the_same_counts_is_the_study_itself():
    components = VarianceComponents(seed=0.01, question=0.008, residual=0.003, question_dof=200.0, seeds=5)
    assert vars(components.planned(5)) == pytest.approx(vars(components))


def test_more_seeds_and_questions_by_hand():
    """Training .007 by 4, questions .005 by 2, answers .003 by 8."""
    components = VarianceComponents(seed=0.01, question=0.008, residual=0.003, question_dof=200.0, seeds=5).planned(
        20, 2.0
    )
    assert components.error**2 == close(0.007 / 4 + 0.005 / 2 + 0.003 / 8)


def test_seeds_that_agree_by_chance_promise_no_power():
    """The seeds agree, but single answers alone give .012: squared errors .012 + .004 with two, .006 + .004 with four.

    Quantiles of Student's t at .975 and .8: 12.7062 and 1.3764 (1 degree), 3.1824 and .9785 (3), 1.9600 and .8416 (many).
    """
    components = VarianceComponents(seed=0.0, question=0.016, residual=0.012, question_dof=1e9, seeds=2)
    found = detectable_differences(components, alpha=0.05)
    seen = (0.75 * (12.7062 + 1.3764) + 0.25 * (1.9600 + 0.8416)) * sqrt(0.016)
    assert found == (close(seen), close((0.6 * (3.1824 + 0.9785) + 0.4 * (1.9600 + 0.8416)) * sqrt(0.010)))


@given(
    *(st.floats(0, 1) for _ in range(3)),
    st.floats(1, 1000),
    st.integers(2, 30),
    st.sampled_from([0.05, 0.0125, 0.05 / 28]),
)
def test_twice_as_many_seeds_never_find_less(seed, question, residual, dof, seeds, alpha):
    found, doubled = detectable_differences(VarianceComponents(seed, question, residual, dof, seeds), alpha)
    assert doubled <= found


def test_the_detectable_difference_is_found_four_times_in_five():
    """Drawn studies of 40 questions and four seeds that differ by single answers alone."""
    rng = np.random.default_rng(3)
    question, residual, count, seeds = 0.02, 0.06, 40, 4
    components = VarianceComponents(
        residual / count / seeds, (question + residual / seeds) / count, residual / count / seeds, count - 1.0, seeds
    )
    true, _ = detectable_differences(components, alpha=0.05)
    found = 0
    for _ in range(400):
        noise = rng.normal(0, residual**0.5, (seeds, count)) + rng.normal(0, question**0.5, count)
        estimate, _ = accuracy_difference({"s": true + noise}, {"s": 0 * noise})
        found += estimate.p <= 0.05
    assert found / 400 == pytest.approx(0.8, abs=0.06)  # three standard errors


@pytest.mark.parametrize(
    ("arm", "baseline", "message"),
    [
        ({"s": TABLE}, {"t": TABLE}, "same sets"),
        ({}, {}, "same sets"),
        ({"s": TABLE}, {"s": TABLE[:1]}, "seeds that both arms finished"),
        ({"s": TABLE[:, :1]}, {"s": TABLE[:, :1]}, "at least 2"),
        ({"s": np.full((2, 3), nan)}, {"s": TABLE}, "0 questions were graded"),
    ],
)
def test_tables_that_do_not_match_are_refused(arm, baseline, message):
    with pytest.raises(InputError, match=message):
        accuracy_difference(arm, baseline)


def test_intervals_cover_and_null_studies_stay_silent():
    """150 studies a world; the bounds are the goals, 93 to 97 % and 5 %, and three standard errors of a count of 600."""
    path = Path(__file__).parents[2] / "benchmarks" / "interval_coverage.py"
    spec = importlib.util.spec_from_file_location("interval_coverage", path)
    assert spec and spec.loader
    benchmark = sys.modules["interval_coverage"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    covers = [benchmark.coverage(world, benchmark.ours, 150, 7)[0] for world in benchmark.WORLDS.values()]
    rejects = [benchmark.false_rejections(world, 150, 8) for world in benchmark.WORLDS.values()]
    slack = 3 * sqrt(0.05 * 0.95 / 600)
    assert 0.93 - slack <= np.mean(covers) <= 0.97 + slack and min(covers) > 0.88
    assert np.mean(rejects) <= 0.05 + slack


def test_two_seeds_and_two_questions_are_enough_for_an_interval():
    """The smallest study that has an interval: differences 0.5, 0 and 0, 0.5; and a plan of two seeds."""
    arm, baseline = np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([[0.5, 0.0], [0.5, 0.0]])
    estimate, parts = accuracy_difference({"set": arm}, {"set": baseline})
    assert estimate.value == pytest.approx(0.25)
    assert parts.planned(seeds=2).seeds == parts.seeds == 2
