"""Areas, targets and censored times against numbers worked by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saerl_lightning.errors import InputError
from saerl_lightning.study.curves import area, pseudo_times, restricted_mean, smooth, steps_to_target


def test_the_running_mean_looks_back():
    assert smooth([3.0, 5, 1, 6, 2], 3).tolist() == pytest.approx([3, 4, 3, 4, 3])
    assert smooth([3.0, 5, 1], 1).tolist() == pytest.approx([3, 5, 1])


def test_the_area_by_hand():
    """(0+2)/2·10 + (2+4)/2·20 = 70 over 30; cut at 20, where the curve is 3: 10 + 25 = 35 over 20."""
    assert area([0, 10, 30], [0.0, 2, 4]) == pytest.approx(70 / 30)
    assert area([0, 10, 30], [0.0, 2, 4], until=20) == pytest.approx(35 / 20)
    assert area([0, 10, 30], [0.0, 2, 4], until=10) == pytest.approx(1.0)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9), st.floats(0.1, 100))
def test_the_area_is_a_height_whatever_the_axis_unit(values, unit):
    x = np.arange(len(values))
    found = area(x.tolist(), values)
    assert min(values) - 1e-9 <= found <= max(values) + 1e-9
    assert area((unit * x).tolist(), values) == pytest.approx(found, abs=1e-9)


def test_a_single_peak_is_not_the_target_reached():
    values = [0.1, 0.6, 0.2, 0.5, 0.7, 0.1]
    assert steps_to_target([0, 10, 20, 30, 40, 50], values, 0.5, window=1) == 30
    assert steps_to_target([0, 10, 20, 30, 40, 50], values, 0.5, hold=1, window=1) == 10
    assert steps_to_target([0, 10, 20, 30, 40, 50], values, 0.5, hold=3, window=1) is None


def test_the_target_is_held_against_the_smoothed_curve_on_any_axis():
    """Means of three: 0, .3, .3, .5, .5, .8: at .4 from the fourth on."""
    values = [0.0, 0.6, 0.3, 0.6, 0.6, 1.2]
    assert steps_to_target([0, 1, 2, 3, 4, 5], values, 0.4) == 3
    assert steps_to_target([0, 900, 1800, 2800, 3900, 5000], values, 0.4) == 2800.0


def test_the_last_evaluation_alone_does_not_count():
    assert steps_to_target([0, 1, 2], [0.0, 0, 9], 0.5, window=1) is None
    assert steps_to_target([0], [9.0], 0.5) is None


def test_a_mean_that_rounds_below_the_target_reaches_it():
    assert steps_to_target([0, 1, 2, 3], [0.1] * 4, 0.1) == 0


@pytest.mark.parametrize(
    ("x", "values", "message"),
    [
        ([0, 1], [0.0, float("nan")], "NaN"),
        ([1, 0], [0.0, 1.0], "ascend"),
        ([0, 1], [0.0], "one value a position"),
        ([], [], "one value a position"),
        ([0], [1.0], "no area"),
    ],
)
def test_curves_without_an_area_are_refused(x, values, message):
    with pytest.raises(InputError, match=message):
        area(x, values)


def test_arguments_out_of_range_are_refused():
    with pytest.raises(InputError, match="up to 40"):
        area([0, 10, 30], [0.0, 2, 4], until=40)
    with pytest.raises(InputError, match="at least 1"):
        smooth([1.0], 0)
    with pytest.raises(InputError, match="held for 0"):
        steps_to_target([0, 1], [0.0, 1.0], 0.5, hold=0)


# -- times to the target --------------------------------------------------------------------------------------------------


def test_the_restricted_mean_without_early_ends_counts_the_budget():
    assert restricted_mean([10, None, 40], [100, 100, 100], 100) == pytest.approx(150 / 3)
    assert restricted_mean([10, None, 40], [100, 100, 100], 30) == pytest.approx(70 / 3)


def test_the_kaplan_meier_mean_by_hand():
    """10 of 4 reached at 10: 3/4 wait. One ends at 20 unseen. At 30 one of 2: 3/8 wait, until 50: 10 + 15 + 7.5."""
    assert restricted_mean([10, None, 30, None], [50, 20, 50, 50], 50) == pytest.approx(32.5)


def test_runs_that_tie_fall_together():
    """At 10 two of 4 at once, one more ends there unseen but was still waiting: 1/2 wait to 50."""
    assert restricted_mean([10, 10, None, None], [50, 50, 10, 50], 50) == pytest.approx(10 + 0.5 * 40)


def test_a_pseudo_time_is_the_run_s_own_where_none_ended_early():
    assert pseudo_times([10, None, 40], [100, 90, 100], 90).tolist() == pytest.approx([10, 90, 40])
    assert pseudo_times([None], [90], 90).tolist() == [90]


def test_a_pseudo_time_of_a_run_that_ended_early_by_hand():
    """All: at 10 one of 3, at 20 one unseen, 2/3 wait to 50: 36.67. Without it: 10 + 20 = 30; so 3·36.67 - 2·30 = 50."""
    assert restricted_mean([10, None, None], [50, 20, 50], 50) == pytest.approx(10 + 2 / 3 * 40)
    assert pseudo_times([10, None, None], [50, 20, 50], 50)[1] == pytest.approx(50)


@pytest.mark.parametrize(
    ("times", "followed", "message"),
    [([], [], "0 times"), ([10], [5], "their unit"), ([10, None], [50], "2 times"), ([None], [40], "horizon of 50")],
)
def test_impossible_times_are_refused(times, followed, message):
    with pytest.raises(InputError, match=message):
        restricted_mean(times, followed, 5 if followed == [5] else 50)
