"""Causal test 5: training on orders of which some features were removed (dose-response), read from a finished study.

The study (`configs/study/dose.yaml`) has SAERL as its baseline, and arms whose curriculum is `WithoutFeatures`. Nothing
is trained here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saerl_lightning.causal.figures import bars, chart, line
from saerl_lightning.data.scores import Interval
from saerl_lightning.errors import InputError
from saerl_lightning.files import read_mapping
from saerl_lightning.study.accuracy_intervals import accuracy_difference
from saerl_lightning.study.costs import logged_steps
from saerl_lightning.study.questions import accuracies, last_questions, measured_sets
from saerl_lightning.study.report.section import Section
from saerl_lightning.study.results import RunResult, StudyResults
from saerl_lightning.study.statistics import Estimate

COLUMNS = [
    "features taken out",
    "which",
    "Kendall's tau with the whole order",
    "runs",
    "accuracy",
    "against none taken",
]
DOSED = "WithoutFeatures"


@dataclass(frozen=True)
class Dose:
    """An arm of the study: the features removed from its order, and the accuracy it reached."""

    arm: str
    count: int
    random: bool
    tau: float  # Kendall's tau between its ratings and those of the full probe
    runs: int
    accuracy: float
    against: Estimate  # difference from the baseline, paired by seed and question

    @property
    def row(self) -> list[str]:
        """The arm's row in the table."""
        which = "random, as active" if self.random else "weightiest"
        return [
            f"{self.count}",
            which,
            f"{self.tau:.2f}",
            f"{self.runs}",
            f"{self.accuracy:.4f}",
            interval(self.against),
        ]


def dose(folder: Path) -> Section:
    """Builds the report section of a study whose arms differ in the number of removed features.

    Args:
        folder: Folder of the study, in any state.

    Raises:
        InputError: if there is no study, no arm with `WithoutFeatures`, or no pair of finished runs.
    """
    results = StudyResults.read(folder)
    doses = sorted(_doses(results), key=lambda each: (each.random, each.count))
    if not doses:
        raise InputError(
            f"the study '{folder}' has no finished arm of {DOSED} with a finished run of '{results.spec.baseline}' on the "
            "same seed; run configs/study/dose.yaml first"
        )
    base = float(np.mean([each.accuracy - each.against.value for each in doses]))
    rows = [["0", "none", "1.00", f"{len(results.finished(results.spec.baseline))}", f"{base:.4f}", ""]]
    return Section(
        "Dose and response: training on orders without features",
        _text(results, doses),
        COLUMNS,
        rows + [each.row for each in doses],
        _figure(doses),
    )


def _doses(results: StudyResults) -> list[Dose]:
    found = []
    for arm in results.spec.arms:
        runs = results.finished(arm)
        order = _curriculum(runs[0]) if runs else {}
        if str(order.get("class_path", "")).endswith(DOSED) and (against := _against(results, arm)) is not None:
            taken, tau = _logged(runs)
            estimate, accuracy, pairs = against
            found.append(Dose(arm, taken, bool(order["init_args"]["random"]), tau, pairs, accuracy, estimate))
    return found


def _curriculum(run: RunResult) -> dict[str, Any]:
    config = read_mapping(run.folder / "config.yaml", "the run's configuration")
    return ((config.get("data") or {}).get("init_args") or {}).get("curriculum") or {}


def _logged(runs: Sequence[RunResult]) -> tuple[int, float]:
    """Number of removed columns and tau that the curriculum logged with the first step, as means over the runs."""
    first = [next(iter(logged_steps(run.folder).values())) for run in runs]
    columns, tau = (
        float(np.mean([row[f"data/curriculum/without/{name}"] for row in first])) for name in ("columns", "tau")
    )
    return round(columns), tau


def _against(results: StudyResults, arm: str) -> tuple[Estimate, float, int] | None:
    """Difference from the baseline at the end, the arm's accuracy, and the number of seeds that both have finished."""
    baseline = results.spec.baseline
    runs = {(run.arm, run.seed): run for each in (arm, baseline) for run in results.finished(each)}
    seeds = [seed for seed in results.spec.seeds if (arm, seed) in runs and (baseline, seed) in runs]
    questions = {key: last_questions(run) for key, run in runs.items()}
    known = list(dict.fromkeys(each.set for own in questions.values() for each in own))
    own, other = accuracies(questions, [arm, baseline], seeds, measured_sets(results.spec.metric, known))
    if not seeds or not own:
        return None
    accuracy = float(np.mean([table.mean() for table in own.values()]))
    return accuracy_difference(own, other)[0], accuracy, len(seeds)


def interval(estimate: Estimate) -> str:
    """Writes a difference with its 95 % interval, if it has one."""
    ends = f" [{estimate.low:+.4f}, {estimate.high:+.4f}]" if np.isfinite(estimate.low) else ""
    return f"{estimate.value:+.4f}{ends}"


def _text(results: StudyResults, doses: Sequence[Dose]) -> str:
    state = "" if results.complete else " The study is not finished."
    apart = [each for each in doses if np.isfinite(each.against.low) and each.against.low * each.against.high > 0]
    said = (
        f"Beyond chance (95 %, not corrected): {', '.join(each.arm for each in apart)}."
        if apart
        else "No dose moved the accuracy beyond chance, and neither did random features."
    )
    return (
        f"{said} If the order earned the accuracy, it would fall along the weightiest, and stay along the random ones.{state}"
        "\n\nSAERL's probe was kept and its weightiest features were set to 0 before the order was made; beside each dose "
        "as many random features that are active in as many prompts. Policies were then trained on these orders (study "
        f"{results.spec.name}: {results.spec.metric} at the end, {len(results.spec.seeds)} seeds an arm, intervals over "
        "seeds and questions)."
    )


def _figure(doses: Sequence[Dose]) -> dict[str, Any]:
    lines = []
    for place, name in enumerate(("weightiest features", "random features")):
        own = [each for each in doses if each.random is bool(place)]
        scores = [Interval(0.0, 0.0, 0.0)]  # without removed features the arm is the baseline
        scores += [Interval(each.against.value, each.against.low, each.against.high) for each in own]
        drawn = line(name, [0, *(each.count for each in own)], [score.value for score in scores], place)
        lines.append(drawn.update(error_y=bars(scores)))
    return chart(
        lines,
        xaxis={"title": {"text": "features taken out of the probe's sight"}},
        yaxis={"title": {"text": "accuracy at the end, against none taken"}},
    )
