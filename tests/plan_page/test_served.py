"""What a run served: the file and its page, by hand; and that a real run writes both."""

import re

import numpy as np
import pytest

from saerl_lightning.errors import InputError
from saerl_lightning.plan_page.served import Served
from saerl_lightning.plan_page.served_page import fates, headline, over_time, reliability, render_served, waits


@pytest.fixture
def served() -> Served:
    """Four prompts in two steps: p2 is served twice, p1 waited three steps, p3 one, and nothing was believed at first."""
    nan = np.nan
    columns = {
        "uid": np.array(["p0", "p1", "p2", "<b>p3"], object),
        "times_served": np.array([1, 0, 2, 0]),
        "groups": np.array([1, 0, 2, 0]),
        "tokens": np.array([160, 0, 300, 0]),
        "last_step": np.array([0, -1, 1, -1]),
        "waits": np.array([0, 3, 0, 1]),
        "right": np.array([8.0, 0, 6.5, 0]),
        "graded": np.array([8.0, 0, 16, 0]),
        "pass_rate_predicted": np.array([0.9, nan, 0.4, nan]),
        "pass_rate_sd": np.array([0.2, nan, 0.1, nan]),
        "chance_predicted": np.array([0.15, nan, 0.95, nan]),
        "why": np.array(["", "chance <to> vary", "", "chance <to> vary"], object),
    }
    bins = np.zeros((10, 3))
    bins[1], bins[9] = (1, 0.15, 0), (4, 3.8, 3)
    return Served(columns, np.array([[nan, 1.0, nan, 0.0], [0.4, 0.4, 0.9, 1.0]]), bins)


def test_the_file_holds_everything(served, tmp_path):
    served.write(tmp_path / "served.parquet")
    again = Served.read(tmp_path / "served.parquet")
    for name, values in served.columns.items():
        assert again.columns[name].dtype == values.dtype, name
        np.testing.assert_array_equal(again.columns[name], values)
    np.testing.assert_array_equal(again.steps, served.steps)
    np.testing.assert_array_equal(again.reliability, served.reliability)


def test_a_notebook_shows_one_line(served):
    assert repr(served) == "<Served: 2 of 4 prompts in 2 steps>"


def test_other_files_are_refused_in_one_line(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    with pytest.raises(InputError, match=r"is no file"):
        Served.read(tmp_path / "served.parquet")
    (tmp_path / "text").write_text("no parquet")
    with pytest.raises(InputError, match=r"no readable parquet file"):
        Served.read(tmp_path / "text")
    parquet.write_table(pa.table({"uid": ["p0"]}), tmp_path / "other")
    with pytest.raises(InputError, match=r"is parquet, but no served\.parquet"):
        Served.read(tmp_path / "other")


def test_what_became_of_prompts_is_counted(served):
    counted = [(row[0], row[1]) for row in fates(served, ["solved", "solved"]).rows]
    assert counted == [("never served", "2"), ("served once", "1"), ("served twice", "1"), ("excluded: solved", "2")]
    assert waits(served).rows == [("chance <to> vary", "2", "2")]
    said = headline(served)
    assert said.startswith("2 steps served 3 groups of 2 prompts; 2 of 4 were never served. 50% of the groups varied")
    assert "where 90% was predicted" in said  # a step without a prediction does not count


def test_calibration_has_wilsons_intervals(served):
    """3 of 4 at z = 1.96: centre (.75 + .4802) / 1.9604 = .6275, half width .3264."""
    marks = reliability(served).data[1]
    assert np.array(marks.x) == pytest.approx([0.15, 0.95])
    assert np.array(marks.y) == pytest.approx([0, 0.75])
    assert marks.y[1] + marks.error_y.array[1] == pytest.approx(0.9544, abs=1e-3)
    assert marks.y[1] - marks.error_y.arrayminus[1] == pytest.approx(0.3006, abs=1e-3)


def test_lines_leave_out_steps_without_a_belief(served):
    measured, believed = over_time(served.steps[:, 0], served.steps[:, 1], "pass rate").data
    assert (list(measured.x), list(measured.y)) == ([1, 2], [1.0, 0.4])
    assert (list(believed.x), list(believed.y)) == ([2], [0.4])


def test_the_page_escapes_what_it_shows_and_loads_nothing(served):
    page = render_served(served, ["<script>alert(1)</script>"])
    assert "<script>alert(1)" not in page and "chance &lt;to&gt; vary" in page
    assert not re.search(r"(src|href)=.https?:", page.split('<script type="application/json"')[0])
    assert page == render_served(served, ["<script>alert(1)</script>"])


def test_a_run_that_has_served_nothing_has_a_page_too(served):
    columns = {name: values[:0] for name, values in served.columns.items()}
    page = render_served(Served(columns, np.zeros((0, 4)), np.zeros((10, 3))))
    assert "0 steps served 0 groups" in page
