"""Recovery: Fieller's interval by hand and by a slow search, its report, and its coverage in a short simulation."""

import importlib.util
import json
import re
import sys
from math import inf, isnan, sqrt
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from saerl_lightning.data.scores import Interval
from saerl_lightning.study.accuracy_intervals import accuracy_difference
from saerl_lightning.study.report.gather import write_report
from saerl_lightning.study.report.recovery import Trio, share_of_gain
from saerl_lightning.study.statistics import ratio_estimate
from tests.study.synthetic_study import Arm, write_study
from tests.study.test_study_report import BETTER, GRPO, rows

EARNED, MORE = np.array([0.03, 0.05, 0.04, 0.06, 0.02]), np.array([0.09, 0.08, 0.11, 0.10, 0.07])
NULL = np.array([0.21, 0.26, 0.24, 0.25, 0.22])


def of(earned: np.ndarray, more: np.ndarray) -> Interval:
    return ratio_estimate(Trio([NULL + earned, NULL, NULL + more]).combined)


def crossing(p: object, inner: float, outer: float) -> float:
    """Ratio at which a p-value passes .05, by bisection between one that is kept and one that is not."""
    for _ in range(80):
        middle = (inner + outer) / 2
        inner, outer = (middle, outer) if p(middle) > 0.05 else (inner, middle)  # pyright: ignore[reportCallIssue]
    return inner


def test_fiellers_interval_by_hand():
    """Means .04 and .09, variances of both 5e-5, covariance 2.5e-5, t 2.77645 at 4 degrees of freedom.

    .0077146 r² - 2 · .0034073 r + .0012146 = 0, from .0081, .0036 and .0016 less t² times these.
    """
    found = of(EARNED, MORE)
    t = 2.776445**2
    a, b, c = 0.0081 - 5e-5 * t, 0.0036 - 2.5e-5 * t, 0.0016 - 5e-5 * t
    root = sqrt(b * b - a * c)
    assert (found.value, found.low, found.high) == pytest.approx((4 / 9, (b - root) / a, (b + root) / a), rel=1e-6)
    assert (found.low, found.high) == pytest.approx((0.24768, 0.63566), rel=1e-4)


def test_the_interval_is_the_ratios_that_a_t_test_keeps():
    rng = np.random.default_rng(0)
    for _ in range(10):
        more = 0.06 + rng.normal(0, 0.02, 10)
        earned = rng.uniform(-1, 1.5) * more + rng.normal(0, 0.02, 10)
        null = rng.normal(0.25, 0.02, 10)
        found = ratio_estimate(Trio([null + earned, null, null + more]).combined)
        value = earned.mean() / more.mean()
        ends = [crossing(lambda r: ttest_1samp(earned - r * more, 0)[1], value, value + way) for way in (-30, 30)]  # noqa: B023
        assert (found.value, found.low, found.high) == pytest.approx((value, *ends), rel=1e-5)


def test_with_questions_the_ratios_are_those_that_the_interval_of_accuracies_keeps():
    """Slow: arm against null + r (oracle - null) at each r, two sets of questions, which vary the most here."""
    rng = np.random.default_rng(3)
    mean = {"a": 0.3, "b": 0.6}
    easy = {name: rng.normal(0, 0.2, 40) for name in mean}
    suits = {name: rng.normal(0, 0.1, 40) for name in mean}
    arm, null, oracle = (
        {name: mean[name] + gain + easy[name] + share * suits[name] + rng.normal(0, 0.05, (5, 40)) for name in mean}
        for gain, share in ((0.05, 0.5), (0.0, 0.0), (0.1, 1.0))
    )
    runs = [np.mean([each.mean(1) for each in own.values()], 0) for own in (arm, null, oracle)]
    found = ratio_estimate(Trio(runs, [arm, null, oracle]).combined)

    def p(ratio: float) -> float:
        return accuracy_difference(arm, {name: null[name] + ratio * (oracle[name] - null[name]) for name in mean})[0].p

    value = float((runs[0] - runs[1]).mean() / (runs[2] - runs[1]).mean())
    ends = [crossing(p, value, value + way) for way in (-20, 20)]
    assert (found.value, found.low, found.high) == pytest.approx((value, *ends), rel=1e-4)
    seeds_alone = ratio_estimate(Trio(runs).combined)
    assert seeds_alone.high - seeds_alone.low < 0.9 * (found.high - found.low)


@pytest.mark.parametrize(
    "more", [MORE - 0.09, MORE - 0.075, -MORE], ids=["no gain", "within its error", "below the null"]
)
def test_an_oracle_that_is_not_above_its_null_bounds_nothing(more):
    found = of(EARNED, more)
    assert (found.low, found.high) == (-inf, inf)
    assert share_of_gain(found) == "not bounded: oracle and null are too near"


def test_one_seed_and_runs_that_do_not_vary_have_no_interval():
    for seeds in (1, 3):
        found = ratio_estimate(Trio([np.full(seeds, each) for each in (0.26, 0.25, 0.27)]).combined)
        assert found.value == pytest.approx(0.5)
        assert isnan(found.low) and isnan(found.high)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_an_arm_whose_runs_are_those_of_null_or_oracle_has_no_interval(share):
    found = of(share * MORE, MORE)
    assert found.value == pytest.approx(share)
    assert isnan(found.low) and isnan(found.high)


# -- report ---------------------------------------------------------------------------------------------------------------

LATE = [
    [*curve[:3], *(value + gain for value in curve[3:])] for curve, gain in zip(GRPO, (0.11, 0.10, 0.09), strict=True)
]
SCORES = {f"filtering/probe/auc{end}": value for end, value in (("", 0.8), ("_low", 0.7), ("_high", 0.9))}
GATE = {"oracle": "oracle", "null": "null", "seeds": [100, 101]}


def gated(root: Path, oracle: list) -> Path:
    stage = {"name": "sae", "makes": "sae", "run": ["main.py fit"]}
    sae = Arm(BETTER, flags=["--data.signals.sae", "{shared}/sae"], scores=SCORES)
    arms = {"grpo": Arm(GRPO), "null": Arm(GRPO), "oracle": Arm(oracle), "sae": sae}
    more = {"gate": GATE, "contrasts": [["sae", "null"]]}
    return write_study(root / "world", arms, [], stages={"sae": 100.0}, made=[stage], more=more)


def test_the_report_shows_what_the_oracles_gain_is_recovered(tmp_path):
    """Gains .054, .05, .046 of .11, .10, .09: .05 - .1 r is ± t / sqrt 3 (.004 - .01 r) at the ends, t 4.30265.

    The oracle earns from step 30 on: 3.5 of 6 parts of the budget, the arm 5.5. So its recovery of the area is 11 / 7 of
    that of the end.
    """
    folder = gated(tmp_path, LATE)
    write_study(
        tmp_path / "world_gate",
        {"null": Arm([[0.2, 0.2], [0.2, 0.25]]), "oracle": Arm([[0.2, 0.3], [0.2, 0.31]])},
        ["oracle"],
    )
    page = write_report(folder)
    found = {row["arm"]: row for row in rows(folder / "report" / "recovery.csv")}
    k = 4.302653 / sqrt(3)
    ends = [0.5, (0.05 + 0.004 * k) / (0.1 + 0.01 * k), (0.05 - 0.004 * k) / (0.1 - 0.01 * k)]
    assert [float(found["sae"][name]) for name in ("end", "end_low", "end_high")] == pytest.approx(ends, rel=1e-5)
    area = [float(found["sae"][name]) for name in ("area", "area_low", "area_high")]
    assert area == pytest.approx([each * 11 / 7 for each in ends], rel=1e-5)
    gain = [float(found["sae"][name]) for name in ("gain", "gain_low")]
    assert gain == pytest.approx([0.05, 0.05 - 0.004 * k], rel=1e-5)
    beside = [
        float(found["sae"][name]) for name in ("seeds", "quality", "quality_low", "signal_s", "tokens", "censored")
    ]
    assert beside == pytest.approx([3, 0.8, 0.7, 100, 4000, 0])
    assert found["sae"]["score"] == "filtering/probe/auc"
    assert [found[arm]["end"] for arm in ("null", "oracle")] == ["0.0", "1.0"]
    (gate,) = rows(folder / "report" / "gate.csv")
    assert (float(gate["difference"]), float(gate["error"]), gate["holds"]) == (
        pytest.approx(0.08),
        pytest.approx(0.02),
        "True",
    )
    said = page.with_suffix(".md").read_text()
    assert (
        "\nThe gate holds: oracle ends +0.080 from null (95 % interval -0.174 to +0.334), 4.0 standard errors" in said
    )
    assert (
        "| sae | 3 | +0.050 | +0.040 to +0.060 | 0.500 (0.480 to 0.533) | 0.786 (0.754 to 0.838) | 4,000 | 100 |"
        in said
    )
    drawn = json.loads(re.search(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', page.read_text(), re.S)[1])  # pyright: ignore[reportOptionalSubscript]
    (points,) = drawn["figures"]["knowing"]["data"]
    assert (points["x"], points["y"], points["text"]) == ([pytest.approx(0.8)], [pytest.approx(0.05)], ["sae"])


def test_a_report_without_a_gap_says_so_and_one_without_a_gate_has_no_recovery(tmp_path):
    same = [[value + shift for value in curve] for curve, shift in zip(GRPO, (0.01, -0.01, 0.001), strict=True)]
    folder = gated(tmp_path, same)
    said = write_report(folder).with_suffix(".md").read_text()
    assert "| not bounded: oracle and null are too near | not bounded: oracle and null are too near |" in said
    assert "The study has a gate, but no runs of it are beside the study." in said
    found = {row["arm"]: row for row in rows(folder / "report" / "recovery.csv")}
    assert [found["sae"][name] for name in ("end", "end_low", "end_high", "end_bounded")] == ["", "", "", "no"]
    plain = write_study(tmp_path / "plain", {"grpo": Arm(GRPO), "sae": Arm(BETTER)}, ["sae"])
    assert "Recovery" not in write_report(plain).read_text()
    assert not (plain / "report" / "recovery.csv").exists()


def test_the_interval_covers_and_a_null_is_left_alone():
    """150 studies of two gaps; the bounds are the goals, 93 to 97 % and 5.5 %, and three standard errors."""
    path = Path(__file__).parents[2] / "benchmarks" / "recovery_coverage.py"
    spec = importlib.util.spec_from_file_location("recovery_coverage", path)
    assert spec and spec.loader
    benchmark = sys.modules["recovery_coverage"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    found = [
        benchmark.fieller(benchmark.World(gap, 0.02, truth), 150, 5) for gap in (0.05, 0.09) for truth in (0.0, 0.7)
    ]
    assert (
        0.93 - 3 * sqrt(0.05 * 0.95 / 600)
        <= np.mean([each.holds for each in found])
        <= 0.97 + 3 * sqrt(0.05 * 0.95 / 600)
    )
    assert np.mean([each.leaves_out for each in found[::2]]) <= 0.055 + 3 * sqrt(0.05 * 0.95 / 300)
