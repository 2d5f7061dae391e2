"""Writes all numbers of a study's runs as CSV files and reads them back without loss: runs, curves, scores, questions.

Numbers are written with all digits; a missing number is an empty cell. Columns of `runs.csv` that follow from other
numbers (a run's end, its area, …) are there for readers without this package. They are not read back; `check_derived`
compares them with the other files.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from saerl_lightning.errors import InputError
from saerl_lightning.study.effects import CurveSummary, compare
from saerl_lightning.study.questions import Key, QuestionAccuracy
from saerl_lightning.study.report.numbers import Evaluation, RunNumbers, StudyNumbers
from saerl_lightning.study.report.tables import sheet
from saerl_lightning.study.run_record import STATES
from saerl_lightning.study.spec import StudySpec

RUN = ["arm", "seed", "state", "error", "seconds"]
DERIVED = ["steps", "start", "end", "area", "reached", "reached_tokens"]
SHARED, END = "shared/", "end/"  # prefixes of the columns of stages and of sets
GROUP = "tokens_per_effective"  # column that follows from the costs, where runs logged groups with variance
CURVE = ["arm", "seed", "step", "sampled_tokens", "seconds"]
QUESTION = ["set", "uid", "topic", "level"]
SCORE = ["arm", "seed", "name", "value"]
NAMES = ("runs.csv", "curves.csv", "scores.csv", "questions.csv")
# Relative tolerance, because other processors may sum in another order.
CLOSE = 1e-9
Row = dict[str, str]
T = TypeVar("T")


def sheets(study: StudyNumbers) -> dict[str, str]:
    """Builds the text of each CSV file, by file name."""
    texts = (_runs(study), _curves(study), _scores(study), _questions(study))
    return dict(zip(NAMES, texts, strict=True))


def _runs(study: StudyNumbers) -> str:
    """Builds `runs.csv`, one row a run: state, summary of curve and questions, costs."""
    measured, costs, shared = compare(study).measured, _names(study, "costs"), _names(study, "shared")
    sets = sorted({each.set for run in study.runs for each in run.questions})
    group = [GROUP] * ("effective_groups" in costs)
    columns = [*RUN, *DERIVED, *(END + name for name in sets), *costs, *group, *(SHARED + name for name in shared)]
    rows = [
        [
            run.arm, run.seed, run.state, run.error, run.seconds,
            *_derived(run, measured.get(run.key)),
            *(_end(run, name) for name in sets),
            *(run.costs.get(name) for name in costs),
            *(run.tokens_per_effective for _ in group),
            *(run.shared.get(name) for name in shared),
        ]
        for run in study.runs
    ]  # fmt: skip
    return sheet(columns, rows)


def _derived(run: RunNumbers, found: CurveSummary | None) -> list[float | None]:
    """Values of the columns `DERIVED`."""
    if found is None:
        return [None] * len(DERIVED)
    tokens = [each.sampled_tokens for each in run.evaluations if each.step == found.reached]
    return [found.last_step, found.start, found.end, found.area, found.reached, *(tokens or [None])]


def _end(run: RunNumbers, name: str) -> float | None:
    own = [each.accuracy for each in run.questions if each.set == name]
    return float(np.mean(own)) if own else None


def _curves(study: StudyNumbers) -> str:
    """Builds `curves.csv`, one row for each evaluation of a run."""
    names = sorted({name for run in study.runs for each in run.evaluations for name in each.metrics})
    rows = [
        [run.arm, run.seed, each.step, each.sampled_tokens, each.seconds, *(each.metrics.get(name) for name in names)]
        for run in study.runs
        for each in run.evaluations
    ]
    return sheet([*CURVE, *names], rows)


def _scores(study: StudyNumbers) -> str:
    """Builds `scores.csv`, one row for each score of a run."""
    rows = [[run.arm, run.seed, name, value] for run in study.runs for name, value in run.scores.items()]
    return sheet(SCORE, rows)


def _questions(study: StudyNumbers) -> str:
    """Builds `questions.csv`, one row a question and one column a finished run."""
    runs = [run for run in study.runs if run.state == "finished"]
    answers = {run.key: {_place(each): each.accuracy for each in run.questions} for run in runs}
    places = sorted({place for own in answers.values() for place in own})
    rows = [[*place, *(answers[run.key].get(place) for run in runs)] for place in places]
    return sheet([*QUESTION, *(_column(run.key) for run in runs)], rows)


def _place(question: QuestionAccuracy) -> tuple[str, str, str, str]:
    return question.set, question.uid, question.topic, question.level


def _column(key: Key) -> str:
    return f"{key[0]}/seed-{key[1]}"


def _names(study: StudyNumbers, field: str) -> list[str]:
    return list(dict.fromkeys(name for run in study.runs for name in getattr(run, field)))


def read_runs(folder: Path, spec: StudySpec) -> list[RunNumbers]:
    """Reads the runs of a study from its CSV files.

    Args:
        folder: Folder that has the CSV files.
        spec: Study whose runs are read.

    Raises:
        InputError: naming the file that is missing, damaged, or of another study.
    """
    evaluated = _read(folder / "curves.csv", CURVE, _read_curves)
    scores = _read(folder / "scores.csv", SCORE, _read_scores)
    questions = _read(folder / "questions.csv", QUESTION, _read_questions)
    runs = _read(
        folder / "runs.csv", [*RUN, *DERIVED], lambda rows: {key: _run(row) for key, row in _by_run(rows).items()}
    )
    planned = [(arm, seed) for arm in spec.arms for seed in spec.seeds]
    if stray := {*planned} ^ {*runs} or {*evaluated, *scores, *questions} - {*runs}:
        raise InputError(f"'{folder}': run {_column(min(stray))} stands in one of its files alone; publish it again")
    return [
        replace(
            runs[key],
            evaluations=evaluated.get(key, []),
            questions=questions.get(key, []),
            scores=scores.get(key, {}),
        )
        for key in planned
    ]


def check_derived(folder: Path, study: StudyNumbers) -> None:
    """Compares the derived columns of `runs.csv` with the numbers they follow from.

    Args:
        folder: Folder that has the CSV files.
        study: Numbers that were read from these files.

    Raises:
        InputError: naming the first cell that differs.
    """
    written = _read(folder / "runs.csv", [*RUN, *DERIVED], _by_run)
    for right in csv.DictReader(io.StringIO(sheets(study)["runs.csv"])):
        given = written[_key(right)]
        for column, value in right.items():
            if not _same(said := given.get(column, ""), value):
                raise InputError(
                    f"'{folder / 'runs.csv'}' says {column} is {said or 'nothing'} in {_column(_key(right))}, and the other "
                    f"files give {value or 'nothing'}: one was changed by hand; publish the study again"
                )


def _read(path: Path, columns: Sequence[str], made: Callable[[list[Row]], T]) -> T:
    """Reads the rows of a CSV file; refuses a damaged file, or one whose first columns differ."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            if list(reader.fieldnames or [])[: len(columns)] != [*columns]:
                raise ValueError(f"its columns do not begin with {', '.join(columns)}")
            rows = list(reader)
        if torn := [number for number, row in enumerate(rows, 2) if None in row or None in row.values()]:
            raise ValueError(f"row {torn[0]} has another number of cells than the first")
        return made(rows)
    except (OSError, ValueError, KeyError, csv.Error) as error:
        said = (
            error.strerror
            if isinstance(error, OSError)
            else f"no column {error}"
            if isinstance(error, KeyError)
            else error
        )
        raise InputError(f"'{path}' is not as `study publish` writes it ({said}); publish the study again") from error


def _key(row: Row) -> Key:
    return row["arm"], int(row["seed"])


def _by_run(rows: list[Row]) -> dict[Key, Row]:
    found = {_key(row): row for row in rows}
    if len(found) != len(rows):
        raise ValueError("a run stands in two rows")
    return found


def _read_curves(rows: list[Row]) -> dict[Key, list[Evaluation]]:
    found: dict[Key, list[Evaluation]] = {}
    for row in rows:
        metrics = _numbers({name: cell for name, cell in row.items() if name not in CURVE})
        each = Evaluation(int(row["step"]), float(row["sampled_tokens"]), float(row["seconds"]), metrics)
        found.setdefault(_key(row), []).append(each)
    return found


def _read_scores(rows: list[Row]) -> dict[Key, dict[str, float]]:
    found: dict[Key, dict[str, float]] = {}
    for row in rows:
        found.setdefault(_key(row), {})[row["name"]] = float(row["value"])
    return found


def _read_questions(rows: list[Row]) -> dict[Key, list[QuestionAccuracy]]:
    found: dict[Key, list[QuestionAccuracy]] = {}
    for row in rows:
        place = (row["set"], row["uid"], row["topic"], row["level"])
        for column, value in _numbers({name: cell for name, cell in row.items() if name not in QUESTION}).items():
            arm, _, seed = column.rpartition("/seed-")
            found.setdefault((arm, int(seed)), []).append(QuestionAccuracy(*place, value))
    return found


def _run(row: Row) -> RunNumbers:
    """Reads a row of `runs.csv`; the fields from other files stay empty."""
    own = {name: cell for name, cell in row.items() if name not in (*RUN, *DERIVED, GROUP) and not name.startswith(END)}
    numbers = _numbers(own)
    costs = {name: value for name, value in numbers.items() if not name.startswith(SHARED)}
    shared = {name.removeprefix(SHARED): value for name, value in numbers.items() if name.startswith(SHARED)}
    if (state := STATES.get(row["state"])) is None:
        raise ValueError(f"state '{row['state']}' is none of {', '.join(STATES)}")
    return RunNumbers(*_key(row), state, row["error"], float(row["seconds"]), costs, shared, [], [], {})


def _numbers(cells: Mapping[str, str]) -> dict[str, float]:
    return {name: float(cell) for name, cell in cells.items() if cell}


def _same(given: str, right: str) -> bool:
    try:
        return math.isclose(float(given), float(right), rel_tol=CLOSE, abs_tol=CLOSE)
    except ValueError:
        return given == right
