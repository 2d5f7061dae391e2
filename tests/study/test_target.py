"""The target that a study's runs are timed to: the baseline itself comes to it, or its time would measure luck.

`benchmarks/target_reach.py` counts this over more courses; here whole studies go through the comparison that a report shows.
"""

import numpy as np
import pytest

from saerl_lightning.study.effects import StudyComparison, compare
from saerl_lightning.study.report.numbers import Evaluation, RunNumbers, StudyNumbers
from saerl_lightning.study.spec import Arm, Budget, StudySpec

METRIC = "val/macro/avg@k"
EVERY = 10  # steps between validations
SEEDS = range(5)


def compared(curves: dict[str, np.ndarray]) -> StudyComparison:
    """Compares arms of five runs; each has one curve a seed, (5, V), and the first is the baseline."""
    baseline, *others = curves
    steps = EVERY * (len(curves[baseline][0]) - 1)
    spec = StudySpec(
        "s", ["base.yaml"], {arm: Arm() for arm in curves}, list(SEEDS), Budget(steps=steps), baseline, METRIC, others
    )
    runs = [
        RunNumbers(arm, seed, "finished", "", 1.0, {}, {}, evaluations(curve), [], {})
        for arm, own in curves.items()
        for seed, curve in zip(SEEDS, own, strict=True)
    ]
    return compare(StudyNumbers(spec, {}, runs))


def evaluations(curve: np.ndarray) -> list[Evaluation]:
    return [Evaluation(EVERY * k, 100.0 * k, 2.0 * k, {METRIC: float(value)}) for k, value in enumerate(curve)]


def test_the_target_and_the_way_to_it_by_hand():
    """From .2 by .02 an evaluation to .4: half of the gain is .3; the mean of three is there from the seventh point on.

    Another arm starts at .2 too, and gains twice as fast: the mean of the points 2, 3 and 4 is .32.
    """
    slow, fast = 0.2 + 0.02 * np.arange(11), 0.2 + 0.04 * np.arange(11)
    found = compared({"slow": np.tile(slow, (5, 1)), "fast": np.tile(fast, (5, 1))})
    assert found.target == pytest.approx(0.3)
    assert {run.reached for (arm, _), run in found.measured.items() if arm == "slow"} == {60.0}
    assert {run.reached for (arm, _), run in found.measured.items() if arm == "fast"} == {40.0}
    (steps,) = [effect for effect in found.effects if effect.measure == "steps"]
    assert (steps.arm_value, steps.other_value, steps.censored) == (40.0, 60.0, (0, 0))


COURSES = {"straight": lambda x: x, "early": lambda x: 1 - np.exp(-5 * x)}


@pytest.mark.parametrize("course", COURSES)
def test_most_of_the_baselines_own_runs_come_to_its_target(course):
    """15 validations of 280 questions with 8 answers, from .25 to .31, and luck that moves a run's gain by a quarter."""
    random = np.random.default_rng(7)
    x = np.arange(15) / 14
    noise = np.sqrt(0.28 * 0.72 / (280 * 8))  # of one validation: .0095
    studies, missed = 60, 0
    for _ in range(studies):
        gain = 0.06 * (1 + 0.25 * random.normal(size=(5, 1)))
        shape = COURSES[course](x) / COURSES[course](1.0)
        baseline, twin = (0.25 + gain * shape + noise * random.normal(size=(5, 15)) for _ in range(2))
        found = compared({"grpo": baseline, "twin": twin})
        own = [run.reached for (arm, _), run in found.measured.items() if arm == "grpo"]
        (steps,) = [effect for effect in found.effects if effect.measure == "steps"]
        assert steps.censored[1] == np.isnan(own).sum()  # what the report shows
        missed += steps.censored[1]
    assert missed / (5 * studies) < 0.1
