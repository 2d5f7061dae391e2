"""The demo's arms: what their curves say, and that a run which fails is told with its own words."""

import pytest

from saerl_lightning.errors import RunStopped
from saerl_lightning.tools.demo import Arms, Trained


def test_the_area_is_the_mean_height_of_the_curve(tmp_path):
    log = tmp_path / "csv" / "version_0" / "metrics.csv"
    log.parent.mkdir(parents=True)
    log.write_text("step,loss,val/demo/avg@8\n0,,0.2\n0,1.0,\n10,,0.4\n40,,0.1\n")
    run = Trained(0, tmp_path)
    assert run.curve("val/demo/avg@8") == [(0, 0.2), (10, 0.4), (40, 0.1)]
    assert run.area("val/demo/avg@8") == pytest.approx((10 * 0.3 + 30 * 0.25) / 40)


@pytest.mark.slow
def test_a_failed_run_says_why(tmp_path):
    with pytest.raises(RunStopped, match=r"(?s)the run arm, seed 0, ended with 2:.*no such thing"):
        Arms(tmp_path, {"arm": ["-c", "no such thing.yaml"]}).train([0], 1)
