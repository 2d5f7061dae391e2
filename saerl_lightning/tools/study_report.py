"""`study report`: a study's folder to `report/`: the page, the same in Markdown, and CSV files. Trains nothing.

It works on any state of a study. What has not finished is marked, and no run that failed is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saerl_lightning.report.ledger import FILE, Ledger
from saerl_lightning.report.numbers import count, with_intervals
from saerl_lightning.report.study import markdown, render
from saerl_lightning.report.study_facts import (
    ArmFact,
    Cost,
    Estimate,
    Panel,
    PlanMap,
    RunFact,
    Score,
    StudyFacts,
)
from saerl_lightning.report.study_tables import sheets
from saerl_lightning.staging import write_whole
from saerl_lightning.study.costs import logged_steps
from saerl_lightning.study.results import RECORD, RunResult, StudyResults
from saerl_lightning.study.sharing import shared_seconds
from saerl_lightning.study.spec import StudySpec
from saerl_lightning.tools.study_effects import Comparison, compare
from saerl_lightning.tools.study_questions import Key, Question, groups, last_questions, sheet

OUT = "report"  # folder in the study's
PANELS = ("causal", "drift")  # folders in the study's whose *.json files become sections


def write_report(folder: str | Path) -> Path:
    """Writes `report/report.html`, `report/report.md` and the CSV files of a study, and gives the page's path.

    Args:
        folder: of the study, in whatever state it is.

    Raises:
        InputError: if the folder holds no study.
    """
    results = StudyResults.read(folder)
    questions = {(run.arm, run.seed): last_questions(run) for run in results.runs if run.state == "finished"}
    facts = gather(results, questions)
    out = results.folder / OUT
    out.mkdir(exist_ok=True)
    for name, text in sheets(facts).items():
        write_whole(out / name, text)
    write_whole(out / "questions.csv", sheet(questions))
    write_whole(out / "report.md", markdown(facts))
    write_whole(out / "report.html", render(facts))
    return out / "report.html"


def gather(results: StudyResults, questions: Mapping[Key, Sequence[Question]]) -> StudyFacts:
    """Computes everything that the report shows.

    Args:
        results: the study.
        questions: of each finished run, by arm and seed, its questions at the end.
    """
    spec, about = results.spec, _about(results.folder)
    compared = compare(results, questions, shared_seconds(results))
    return StudyFacts(
        name=spec.name,
        digest=str(about.get("digest", "")),
        created=str(about.get("created", "")),
        metric=spec.metric,
        budget=_budget(spec),
        baseline=spec.baseline,
        primary=compared.primary,
        arms=[ArmFact(name, arm.description, _settings(arm.configs, arm.flags)) for name, arm in spec.arms.items()],
        runs=[_run(run, compared) for arm in spec.arms for run in results.runs if run.arm == arm],
        target=compared.target,
        common=["the pool and the questions", *spec.share],
        unit=spec.budget.unit,
        curves=compared.curves,
        effects=compared.effects,
        costs=_costs(results),
        groups=groups(questions),
        maps=_maps(results),
        scores=_scores(results),
        panels=read_panels(results.folder),
        notes=compared.notes,
    )


def read_panels(folder: Path) -> list[Panel]:
    """Reads the sections that other tools left in `causal/*.json` and `drift/*.json`: the fields of `Panel`.

    A file that is none becomes a section that says so.
    """
    return [_panel(path) for name in PANELS for path in sorted((folder / name).glob("*.json"))]


def _panel(path: Path) -> Panel:
    try:
        given = json.loads(path.read_text())
        rows = [[str(cell) for cell in row] for row in given.get("rows", [])]
        columns = [str(column) for column in given.get("columns", [])]
        return Panel(str(given["title"]), str(given["text"]), columns, rows, given.get("figure"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        about = (
            f"This file is no section of a report ({error!r}); write title, text, and columns with rows or a figure."
        )
        return Panel(f"{path.parent.name}/{path.name}", about)  # the rest of the report is worth having


def _about(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    return json.loads(path.read_text()) if path.is_file() else {}


def _budget(spec: StudySpec) -> str:
    steps, tokens = spec.budget.steps, spec.budget.generated_tokens
    return f"{count(steps)} steps" if steps is not None else f"{count(tokens or 0)} generated tokens"


def _settings(configs: Sequence[str], flags: Sequence[str]) -> str:
    return " ".join([*(f"-c {config}" for config in configs), *flags])


def _run(run: RunResult, compared: Comparison) -> RunFact:
    measured = compared.measured.get((run.arm, run.seed))
    config = run.folder / "config.yaml"
    return RunFact(
        run.arm,
        run.seed,
        run.state,
        seconds=run.seconds if run.state != "waiting" else float("nan"),
        config=f"../{run.arm}/{run.folder.name}/config.yaml" if config.is_file() else "",
        error=run.error,
        **({} if measured is None else vars(measured)),
    )


def _costs(results: StudyResults) -> list[Cost]:
    shared, found = shared_seconds(results), []
    for arm in results.spec.arms:
        if runs := results.finished(arm):
            names = [name for name in _names([run.costs for run in runs]) if name != "steps"]
            own = {name: float(np.mean([run.costs.get(name, 0.0) for run in runs])) for name in names}
            made = [shared[arm, run.seed] for run in runs]
            stages = {f"{name}_s": float(np.mean([each.get(name, 0.0) for each in made])) for name in _names(made)}
            wall = float(np.mean([run.seconds + sum(each.values()) for run, each in zip(runs, made, strict=True)]))
            found.append(Cost(arm, len(runs), {**stages, **own}, wall))
    return found


def _names(rows: Sequence[Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _maps(results: StudyResults) -> list[PlanMap]:
    found = []
    for arm in results.spec.arms:
        run = next((run for run in results.finished(arm) if (run.folder / FILE).is_file()), None)
        if run is not None:
            found.append(PlanMap(arm, run.seed, Ledger.read(run.folder / FILE)))
    return found


def _scores(results: StudyResults) -> list[Score]:
    """Means over an arm's runs of what the operations logged with the first step."""
    found = []
    for arm in results.spec.arms:
        logged = [_operations(run) for run in results.finished(arm)]
        names = dict.fromkeys(name for row in logged for name in row)
        means = {name: float(np.mean([row[name] for row in logged if name in row])) for name in names}
        found += [Score(arm, name, Estimate(value, *ends)) for name, value, ends in with_intervals(means)]
    return found


def _operations(run: RunResult) -> dict[str, float]:
    first = next(iter(logged_steps(run.folder).values()), {})
    return {name.removeprefix("data/"): value for name, value in first.items() if name.startswith("data/")}
