"""Numbers of a study's runs, from which its report is computed: plain records, read from the study's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from saerl_lightning.files import read_json
from saerl_lightning.study.costs import curves, logged_steps
from saerl_lightning.study.folder import read_about
from saerl_lightning.study.questions import Key, QuestionAccuracy, last_questions
from saerl_lightning.study.results import RECORD, TAKEN, RunResult, StudyResults
from saerl_lightning.study.run_record import STATES, State
from saerl_lightning.study.spec import StudySpec
from saerl_lightning.study.stages import shared_seconds

EVALUATED = ("val/", "test/")  # prefixes of metrics that are means over questions


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run, with the tokens and seconds that the run had spent by then."""

    step: int  # optimiser steps done
    sampled_tokens: float  # a whole number
    seconds: float  # of all phases, rounded to milliseconds
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class RunNumbers:
    """Measurements and costs of one run.

    Args:
        seconds: Wall-clock seconds over all attempts; 0 if the run has not begun.
        costs: Seconds by phase ("generate_s"), numbers of tokens ("sampled_tokens"), and "effective_groups".
        shared: Seconds of each shared stage that the run uses, by the stage's name.
        questions: Questions of the last evaluation of a finished run, by set and uid.
        scores: Scores that the operations of a finished run logged with the first step, without the prefix "data/".
    """

    arm: str
    seed: int
    state: State
    error: str
    seconds: float
    costs: Mapping[str, float]
    shared: Mapping[str, float]
    evaluations: Sequence[Evaluation]
    questions: Sequence[QuestionAccuracy]
    scores: Mapping[str, float]

    @property
    def key(self) -> Key:
        """Arm and seed of the run."""
        return self.arm, self.seed

    @property
    def tokens_per_effective(self) -> float:
        """Sampled tokens for each group with variance, over the whole run; NaN if it logged no such group."""
        groups = self.costs.get("effective_groups", 0.0)
        return self.costs.get("sampled_tokens", np.nan) / groups if groups > 0 else np.nan

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """Steps and values of the evaluations that have the metric."""
        values = [(each.step, each.metrics.get(metric, np.nan)) for each in self.evaluations]
        return [(step, value) for step, value in values if np.isfinite(value)]

    def recorded(self) -> dict[str, Any]:
        """The numbers as plain values, from which `of` makes them again without loss."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        evaluations = [asdict(each) for each in self.evaluations]
        return {**own, "evaluations": evaluations, "questions": [list(astuple(each)) for each in self.questions]}

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> RunNumbers:
        """Makes the numbers from what `recorded` gave; further keys are passed over.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: if a value is missing or of another kind.
        """
        numbers = {
            name: {key: float(value) for key, value in given[name].items()} for name in ("costs", "shared", "scores")
        }
        return cls(
            str(given["arm"]),
            int(given["seed"]),
            STATES[given["state"]],
            str(given["error"]),
            float(given["seconds"]),
            evaluations=[_evaluation(**each) for each in given["evaluations"]],
            questions=[_question(*each) for each in given["questions"]],
            **numbers,
        )


@dataclass(frozen=True)
class StudyNumbers:
    """A study and the numbers of all its runs, including failed ones and those that have not begun.

    Args:
        spec: Study that was run.
        about: Contents of the study's `study.json`: digest, date, software.
        runs: Runs arm by arm, with the seeds in order.
    """

    spec: StudySpec
    about: Mapping[str, Any]
    runs: Sequence[RunNumbers]

    def finished(self, arm: str) -> list[RunNumbers]:
        """Finished runs of an arm, in the order of the seeds."""
        return [run for run in self.runs if run.arm == arm and run.state == "finished"]

    @property
    def questions(self) -> dict[Key, Sequence[QuestionAccuracy]]:
        """Questions of the last evaluation of each finished run."""
        return {run.key: run.questions for run in self.runs if run.state == "finished"}


def read_numbers(results: StudyResults) -> StudyNumbers:
    """Reads the numbers of all runs from a study's folder.

    Raises:
        InputError: if the study's record is damaged.
    """
    shared = shared_seconds(results)
    about = read_about(results.folder) if (results.folder / RECORD).is_file() else {}
    runs = {(run.arm, run.seed): run for run in results.runs}
    ordered = [runs[arm, seed] for arm in results.spec.arms for seed in results.spec.seeds]
    return StudyNumbers(
        results.spec, about, [_run(run, results.spec.metric, shared[run.arm, run.seed]) for run in ordered]
    )


def read_run_numbers(results: StudyResults, arm: str, seed: int) -> RunNumbers:
    """Reads the numbers of one run from a study's folder."""
    (run,) = (run for run in results.runs if (run.arm, run.seed) == (arm, seed))
    return _run(run, results.spec.metric, shared_seconds(results)[arm, seed])


def _evaluation(step: int, sampled_tokens: float, seconds: float, metrics: Mapping[str, float]) -> Evaluation:
    values = {name: float(value) for name, value in metrics.items()}
    return Evaluation(int(step), float(sampled_tokens), float(seconds), values)


def _question(part: str, uid: str, topic: str, level: str, accuracy: float) -> QuestionAccuracy:
    return QuestionAccuracy(str(part), str(uid), str(topic), str(level), float(accuracy))


def _run(run: RunResult, metric: str, shared: Mapping[str, float]) -> RunNumbers:
    if run.recorded:
        return RunNumbers.of(read_json(run.folder / TAKEN, "the record of a run"))
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
    """Evaluations of a run in order, with all metrics over questions and the study's metric."""
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
