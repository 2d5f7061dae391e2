"""Every number of a study's runs that its report is computed from: plain records, read from the study's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saerl_lightning.study.costs import curves, logged_steps
from saerl_lightning.study.folder import read_about
from saerl_lightning.study.questions import Key, Question, last_questions
from saerl_lightning.study.results import RECORD, RunResult, StudyResults
from saerl_lightning.study.run_record import State
from saerl_lightning.study.spec import StudySpec
from saerl_lightning.study.stages import shared_seconds

EVALUATED = ("val/", "test/")  # what names of metrics over questions begin with


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run, and what the run had spent by then."""

    step: int  # optimiser steps done
    sampled_tokens: float  # whole ones
    seconds: float  # of the run's own phases, to the millisecond
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class RunNumbers:
    """What one run measured and cost.

    Args:
        seconds: wall-clock over all attempts; 0 where it has not begun.
        costs: seconds by phase ("generate_s"), and tokens ("sampled_tokens").
        shared: seconds of each shared stage that the run uses, by the stage's name.
        questions: at the end, of a finished run; by set and uid.
        scores: what the operations said of themselves with the first step, of a finished run; without "data/".
    """

    arm: str
    seed: int
    state: State
    error: str
    seconds: float
    costs: Mapping[str, float]
    shared: Mapping[str, float]
    evaluations: Sequence[Evaluation]
    questions: Sequence[Question]
    scores: Mapping[str, float]

    @property
    def key(self) -> Key:
        """The arm and the seed."""
        return self.arm, self.seed

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """Steps and values of the evaluations that gave a number."""
        values = [(each.step, each.metrics.get(metric, np.nan)) for each in self.evaluations]
        return [(step, value) for step, value in values if np.isfinite(value)]


@dataclass(frozen=True)
class StudyNumbers:
    """A study and the numbers of all its runs, also of those that failed or have not begun.

    Args:
        spec: the study.
        about: what its `study.json` says: digest, date, software.
        runs: arm by arm, the seeds in their order.
    """

    spec: StudySpec
    about: Mapping[str, Any]
    runs: Sequence[RunNumbers]

    def finished(self, arm: str) -> list[RunNumbers]:
        """The arm's finished runs, in the order of the seeds."""
        return [run for run in self.runs if run.arm == arm and run.state == "finished"]

    @property
    def questions(self) -> dict[Key, Sequence[Question]]:
        """Of each finished run its questions at the end."""
        return {run.key: run.questions for run in self.runs if run.state == "finished"}


def read_numbers(results: StudyResults) -> StudyNumbers:
    """Reads what the runs of a study left behind.

    Raises:
        InputError: if the study's record is torn.
    """
    shared = shared_seconds(results)
    about = read_about(results.folder) if (results.folder / RECORD).is_file() else {}
    runs = {(run.arm, run.seed): run for run in results.runs}
    ordered = [runs[arm, seed] for arm in results.spec.arms for seed in results.spec.seeds]
    return StudyNumbers(
        results.spec, about, [_run(run, results.spec.metric, shared[run.arm, run.seed]) for run in ordered]
    )


def _run(run: RunResult, metric: str, shared: Mapping[str, float]) -> RunNumbers:
    finished = run.state == "finished"
    return RunNumbers(
        run.arm,
        run.seed,
        run.state,
        run.error,
        run.seconds,
        {name: value for name, value in run.costs.items() if name != "steps"},
        shared,
        evaluations(run, metric),
        last_questions(run) if finished else [],
        _scores(run.folder) if finished else {},
    )


def evaluations(run: RunResult, metric: str) -> list[Evaluation]:
    """The run's evaluations in their order, with all that was measured over questions, and the metric whatever it is."""
    found = curves(run.folder, lambda name: name == metric or name.startswith(EVALUATED))
    by_step: dict[int, dict[str, float]] = {}
    for name in sorted(found):
        for step, value in found[name]:
            by_step.setdefault(step, {})[name] = value
    steps = sorted(by_step)
    tokens, seconds = (_spent(run, cost, steps) for cost in ("sampled_tokens", "seconds"))
    return [
        Evaluation(step, float(round(taken)), round(passed, 3), by_step[step])
        for step, taken, passed in zip(steps, tokens, seconds, strict=True)
    ]


def _spent(run: RunResult, cost: str, steps: Sequence[int]) -> list[float]:
    known = np.array([(0, 0.0), *run.spent(cost)], dtype=np.float64)
    return np.interp(steps, known[:, 0], known[:, 1]).tolist()


def _scores(folder: Path) -> dict[str, float]:
    first = next(iter(logged_steps(folder).values()), {})
    return {name.removeprefix("data/"): value for name, value in first.items() if name.startswith("data/")}
