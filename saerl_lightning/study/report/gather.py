"""`study report`: writes a study's page, the same page in Markdown, and CSV files to `report/`. Trains nothing.

It works for a study in any state. Unfinished runs are marked, and failed runs are listed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from saerl_lightning.data.scores import Interval
from saerl_lightning.errors import InputError
from saerl_lightning.files import read_json, write_whole
from saerl_lightning.plan_page.ledger import FILE, Ledger
from saerl_lightning.plan_page.tables import count, with_intervals
from saerl_lightning.study.effects import StudyComparison, compare
from saerl_lightning.study.execution import LOG, data_warnings
from saerl_lightning.study.gate import GateResult, gate_folder, gate_result
from saerl_lightning.study.questions import groups
from saerl_lightning.study.report.facts import (
    ArmFact,
    Cost,
    OperationScore,
    PlanMap,
    RunFact,
    StudyFacts,
)
from saerl_lightning.study.report.numbers import RunNumbers, StudyNumbers, read_numbers
from saerl_lightning.study.report.page import markdown, render
from saerl_lightning.study.report.recovery import recoveries, recovery_sheet
from saerl_lightning.study.report.section import Section
from saerl_lightning.study.report.sheets import sheets
from saerl_lightning.study.report.tables import sheet
from saerl_lightning.study.report.tables import sheets as computed_sheets
from saerl_lightning.study.results import SPEC, TAKEN, StudyResults, run_folder
from saerl_lightning.study.seeding import common_parts
from saerl_lightning.study.spec import StudySpec
from saerl_lightning.study.statistics import mean_estimate

OUT = "report"  # subfolder of the study's folder
SECTIONS = ("causal", "drift")  # subfolders of the study's folder whose *.json files become sections


def write_report(folder: str | Path) -> Path:
    """Writes `report/report.html`, `report/report.md` and the CSV files of a study; returns the page's path.

    Args:
        folder: Folder of the study, in any state.

    Raises:
        InputError: if the folder holds no study.
    """
    results = StudyResults.read(folder)
    numbers = read_numbers(results)
    sections = [*read_sections(results.folder), *_recorded(results)]
    facts = replace(gather(numbers), maps=_maps(results), sections=sections)
    gate = _gate(results)
    facts = replace(facts, warned=_warned(results), gate=_gate_said(results.spec, gate))
    facts = replace(facts, runs=[_with_config(run, results.folder) for run in facts.runs])
    out = results.folder / OUT
    out.mkdir(exist_ok=True)
    for name, text in {
        **sheets(numbers),
        **computed_sheets(facts),
        **recovery_sheet(facts),
        **_gate_sheet(gate),
    }.items():
        write_whole(out / name, text)
    write_whole(out / "report.md", markdown(facts))
    write_whole(out / "report.html", render(facts))
    return out / "report.html"


def gather(study: StudyNumbers) -> StudyFacts:
    """Computes all facts of the report from the numbers of the runs."""
    spec, compared, scores = study.spec, compare(study), _scores(study)
    return StudyFacts(
        name=spec.name,
        digest=str(study.about.get("digest", "")),
        created=str(study.about.get("created", "")),
        metric=spec.metric,
        budget=_budget(spec),
        baseline=spec.baseline,
        primary=spec.family,
        arms=[ArmFact(name, arm.description, _settings(arm.configs, arm.flags)) for name, arm in spec.arms.items()],
        runs=[_run(run, compared) for run in study.runs],
        target=compared.target,
        common=common_parts(spec, study.about.get("inputs", [])),
        unit=spec.budget.unit,
        curves=compared.curves,
        effects=compared.effects,
        costs=_costs(study),
        groups=groups(study.questions),
        scores=scores,
        recoveries=recoveries(study, compared, scores),
        caveats=compared.caveats,
    )


def read_sections(folder: Path) -> list[Section]:
    """Reads the sections that other tools wrote to `causal/*.json` and `drift/*.json`.

    A file without a section's fields becomes a section that says so.
    """
    return [_section(path) for name in SECTIONS for path in sorted((folder / name).glob("*.json"))]


def _recorded(results: StudyResults) -> list[Section]:
    """A section that lists the runs whose numbers came from records, with machine and software; none without such runs."""
    rows = []
    for run in (run for run in results.runs if run.recorded):
        about = read_json(run.folder / TAKEN, "the record of a run")
        software = "; ".join(_listed(each) for each in about["software"])
        rows.append([run.arm, str(run.seed), _listed(about["machine"]) or "not recorded", software])
    text = "These runs were made elsewhere or earlier, and their numbers come from records; machine and software are theirs."
    return [Section("Runs from records", text, ["arm", "seed", "machine", "software"], rows)] if rows else []


def _listed(facts: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def _section(path: Path) -> Section:
    try:
        given = read_json(path, "the section")
        rows = [[str(cell) for cell in row] for row in given.get("rows", [])]
        columns = [str(column) for column in given.get("columns", [])]
        return Section(str(given["title"]), str(given["text"]), columns, rows, given.get("figure"))
    except (InputError, KeyError, TypeError, AttributeError) as error:
        about = (
            f"This file is no section of a report ({error!r}); write title, text, and columns with rows or a figure."
        )
        # A damaged section must not prevent the rest of the report.
        return Section(f"{path.parent.name}/{path.name}", about)


def _gate(results: StudyResults) -> GateResult | None:
    """Result of the study's gate, if its folder stands beside the study's."""
    folder = gate_folder(results.folder)
    if results.spec.gate is None or not (folder / SPEC).is_file():
        return None
    return gate_result(read_numbers(StudyResults.read(folder)))


def _gate_said(spec: StudySpec, gate: GateResult | None) -> str:
    if spec.gate is None:
        return ""
    if gate is None:
        return "The study has a gate, but no runs of it are beside the study."
    return f"The {gate.said}; on seeds of its own."


def _gate_sheet(gate: GateResult | None) -> dict[str, str]:
    if gate is None:
        return {}
    between = gate.difference
    columns = ["oracle", "null", "difference", "low", "high", "error", "holds"]
    row = [gate.oracle, gate.null, between.value, between.low, between.high, gate.error, gate.holds]
    return {"gate.csv": sheet(columns, [row])}


def _budget(spec: StudySpec) -> str:
    steps, tokens = spec.budget.steps, spec.budget.generated_tokens
    return f"{count(steps)} steps" if steps is not None else f"{count(tokens or 0)} generated tokens"


def _settings(configs: Sequence[str], flags: Sequence[str]) -> str:
    return " ".join([*(f"-c {config}" for config in configs), *flags])


def _run(run: RunNumbers, compared: StudyComparison) -> RunFact:
    measured = compared.measured.get(run.key)
    seconds = run.seconds if run.state != "waiting" else float("nan")
    return RunFact(
        run.arm, run.seed, run.state, seconds=seconds, error=run.error, **({} if measured is None else vars(measured))
    )


def _with_config(run: RunFact, folder: Path) -> RunFact:
    """Adds the path of the run's configuration, relative to the report's folder, if the run has begun."""
    config = run_folder(folder, run.arm, run.seed) / "config.yaml"
    return replace(run, config=f"../{config.relative_to(folder)}") if config.is_file() else run


def _costs(study: StudyNumbers) -> list[Cost]:
    found = []
    for arm in study.spec.arms:
        if runs := study.finished(arm):
            own = {name: _mean([run.costs.get(name, 0.0) for run in runs]) for name in _names([r.costs for r in runs])}
            names = _names([run.shared for run in runs])
            stages = {f"{name}_s": _mean([run.shared.get(name, 0.0) for run in runs]) for name in names}
            wall = _mean([run.seconds + sum(run.shared.values()) for run in runs])
            found.append(Cost(arm, len(runs), {**stages, **own}, wall, _group_cost(runs)))
    return found


def _group_cost(runs: Sequence[RunNumbers]) -> Interval:
    """Mean over runs of the tokens for each group with variance; missing if a run has no such number."""
    each = [run.tokens_per_effective for run in runs]
    if not np.isfinite(each).all():
        return Interval()
    mean = mean_estimate(each)
    return Interval(mean.value, mean.low, mean.high)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _names(rows: Sequence[Mapping[str, object]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _maps(results: StudyResults) -> list[PlanMap]:
    found = []
    for arm in results.spec.arms:
        run = next((run for run in results.finished(arm) if (run.folder / FILE).is_file()), None)
        if run is not None:
            found.append(PlanMap(arm, run.seed, Ledger.read(run.folder / FILE)))
    return found


def _warned(results: StudyResults) -> list[str]:
    """Sentences of the runs' logs on data that was not planned as the arm says: each once an arm, with the number of runs.

    Numbers in a sentence may differ by seed; the first run's are shown.
    """
    said = []
    for arm in results.spec.arms:
        logs = [run_folder(results.folder, arm, seed) / LOG for seed in results.spec.seeds]
        begun = [data_warnings(log) for log in logs if log.is_file()]
        for key in _names(begun):
            found = [each[key] for each in begun if key in each]
            said.append(f"{arm}, {len(found)} of {len(begun)} runs: {found[0]}")
    return said


def _scores(study: StudyNumbers) -> list[OperationScore]:
    """Means over an arm's runs of the scores that the operations logged with the first step."""
    found = []
    for arm in study.spec.arms:
        logged = [run.scores for run in study.finished(arm)]
        means = {name: _mean([row[name] for row in logged if name in row]) for name in _names(logged)}
        found += [OperationScore(arm, name, Interval(value, *ends)) for name, value, ends in with_intervals(means)]
    return found
