"""Tables of a study as text: the page and `report.md` show the same rows. The CSV files have the unrounded numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

import numpy as np

from saerl_lightning.data.scores import Interval
from saerl_lightning.plan_page.tables import Table, count, interval, number, share
from saerl_lightning.study.report.facts import Cost, Effect, Group, Measure, StudyFacts
from saerl_lightning.study.report.findings import MISSING_RUNS, amount, probability, signed, signed_interval

MEASURES: dict[Measure, str] = {
    "end": "end, at the budget",
    "area": "area under the curve",
    "steps": "steps to the target",
    "tokens": "sampled tokens to the target",
    "group": "sampled tokens for each group with variance, over the whole run",
    "wall": "seconds to the target, with the shared stages that the arm uses",
}
CENSORED = "†"  # marks a cost to a target that at least one run did not reach
SHOWN = ("r2", "pearson", "spearman", "auc", "nmi", "ami", "ari", "spearman_length", "kept", "dropped", "share")


def arms(facts: StudyFacts) -> Table:
    """Table of the arms: description, settings, state of the runs."""
    rows, primary = [], {arm for pair in facts.primary for arm in pair}
    for arm in facts.arms:
        own = [run for run in facts.runs if run.arm == arm.name]
        finished = facts.finished(arm.name)
        role = "baseline" if arm.name == facts.baseline else "primary" if arm.name in primary else ""
        ends = [run.end for run in finished if np.isfinite(run.end)]
        end = number(float(np.mean(ends))) if ends else "–"
        rows.append((arm.name, role, arm.description, arm.settings, f"{len(finished)} of {len(own)}", end))
    return Table("arms", "Arms", ("arm", "role", "what it is", "settings", "runs", "mean end"), rows, left=4)


def effects(facts: StudyFacts) -> list[Table]:
    """Tables of all comparisons, one a measure; significant ones are marked."""
    return [_effects(facts, measure) for measure in MEASURES if any(each.measure == measure for each in facts.effects)]


def _effects(facts: StudyFacts, measure: Measure) -> Table:
    columns = (
        "arm",
        "seeds",
        "arm's",
        "other's" if facts.contrasted else "baseline's",
        "difference",
        "95 % interval",
        "p",
        "p, sign flips",
        "p, Holm",
        "",
    )
    rows = [
        (
            facts.named(each.arm, each.other),
            count(each.seeds),
            amount(each.arm_value) + CENSORED * bool(each.censored[0]),
            amount(each.other_value) + CENSORED * bool(each.censored[1]),
            signed(each.difference.value) + CENSORED * any(each.censored),
            signed_interval(each.difference),
            probability(each.p),
            probability(each.p_flips),
            probability(each.p_holm),
            verdict(each),
        )
        for each in facts.effects
        if each.measure == measure
    ]
    return Table(f"effects.{measure}", f"{against(facts)}: {MEASURES[measure]}", columns, rows)


def against(facts: StudyFacts) -> str:
    """Says what the arms are compared with."""
    return f"Against each other and {facts.baseline}" if facts.contrasted else f"Against {facts.baseline}"


def verdict(effect: Effect) -> str:
    """A mark and a word for an effect, so that it can be read without colours."""
    if not effect.primary:
        return "exploratory"
    if not np.isfinite(effect.p_holm):
        return "no test"
    return "★ stands" if effect.significant else "no evidence"


def runs(facts: StudyFacts) -> Table:
    """Table of every run, in whatever state."""
    columns = (
        "arm", "seed", "status", "error", "config", "steps", "start", "end", "area", "target at step", "seconds",
    )  # fmt: skip
    rows = [
        (
            run.arm,
            str(run.seed),
            run.state if run.state == "finished" else f"✗ {MISSING_RUNS[run.state]}",
            run.error,
            run.config,
            count(run.last_step),
            number(run.start),
            number(run.end),
            number(run.area),
            count(run.reached) if np.isfinite(run.reached) else "never" if run.state == "finished" else "–",
            amount(run.seconds),
        )
        for run in facts.runs
    ]
    return Table("runs", "Runs", columns, rows, left=5)


def costs(facts: StudyFacts) -> Table:
    """Table of the mean seconds and tokens of a run; columns without any number are left out."""
    names = cost_names(facts.costs)
    known = any(np.isfinite(cost.group.value) for cost in facts.costs)
    group = ("tokens for each group with variance",) * known
    columns = ("arm", "runs", *map(_cost_title, names), *group, "wall-clock, s")
    rows = [
        (
            cost.arm,
            count(cost.runs),
            *(_cell(cost.amounts.get(name)) for name in names),
            *(around(cost.group) for _ in group),
            amount(cost.wall_s),
        )
        for cost in facts.costs
    ]
    return Table("costs", "What a run costs", columns, rows)


def cost_names(listed: Sequence[Cost]) -> list[str]:
    """Names of the costs: seconds first, then tokens, then others, ordered as in the arm that has most of them."""
    longest = sorted(listed, key=lambda cost: len(cost.amounts), reverse=True)
    names = list(dict.fromkeys(name for cost in longest for name in cost.amounts))
    return sorted(names, key=lambda name: (not name.endswith("_s"), not name.endswith("_tokens")))


def scores(facts: StudyFacts) -> Table:
    """Table of the operations' scores, one column an arm; counts and thresholds are left to the run's own metrics."""
    names = list(dict.fromkeys(each.name for each in facts.scores if each.name.rpartition("/")[2] in SHOWN))
    having = [arm.name for arm in facts.arms if any(each.arm == arm.name for each in facts.scores)]
    found = {(each.name, each.arm): each.interval for each in facts.scores}
    rows = []
    for name in names:
        cells = []
        for arm in having:
            estimate = found.get((name, arm))
            cells.append("–" if estimate is None else around(estimate))
        rows.append((name, *cells))
    return Table("scores", "What the operations say of themselves", ("number", *having), rows)


def groups(facts: StudyFacts) -> Table:
    """Table of the accuracy of every set, topic and level, one column an arm, with differences from the baseline."""
    names = [arm.name for arm in facts.arms if any(arm.name in group.accuracy for group in facts.groups)]
    rows = [
        (group.kind, group.name, count(group.questions), *(group_cell(group, arm, facts.baseline) for arm in names))
        for group in facts.groups
    ]
    return Table("groups", "Accuracy at the end", ("", "name", "questions", *names), rows, left=2)


def group_cell(group: Group, arm: str, baseline: str) -> str:
    """Writes an accuracy with its difference from the baseline's."""
    own, other = group.accuracy.get(arm), group.accuracy.get(baseline)
    if own is None:
        return "–"
    return number(own) if arm == baseline or other is None else f"{number(own)} ({signed(own - other)})"


def curves(facts: StudyFacts) -> Table:
    """Table of the curves' means and ranges, which replaces the figure where it can't be shown."""
    columns = ("arm", "runs", "step", "mean", "lowest run", "highest run")
    rows = [
        (curve.arm, count(len(curve.seeds)), count(step), *map(number, (mean, low, high)))
        for curve in facts.curves
        for step, mean, low, high in zip(
            curve.steps.tolist(),
            curve.mean.tolist(),
            curve.values.min(0).tolist(),
            curve.values.max(0).tolist(),
            strict=True,
        )
    ]
    return Table("curves", f"{facts.metric} by step", columns, rows)


def overview(facts: StudyFacts) -> list[tuple[str, str]]:
    """Lines of the study's overview, each a name and a text."""
    finished = sum(run.state == "finished" for run in facts.runs)
    facts_of_file = [("study", facts.name), ("digest", facts.digest), ("created", facts.created)]
    return [
        *((name, value) for name, value in facts_of_file if value),
        ("compared by", facts.metric),
        ("budget of a run", facts.budget),
        ("baseline", facts.baseline),
        ("common to all seeds", ", ".join(facts.common) or "nothing"),
        ("primary family", ", ".join(facts.family) or "none"),
        ("runs finished", f"{count(finished)} of {count(len(facts.runs))} ({share(finished, len(facts.runs))})"),
        ("target", number(facts.target)),
    ]


def sheets(facts: StudyFacts) -> dict[str, str]:
    """Builds the CSV files of the computed facts, by file name."""
    return {
        "effects.csv": sheet(
            [
                "measure", "arm", "other", "seeds", "arm_value", "other_value", "difference", "low", "high", "p",
                "p_flips", "p_holm", "arm_censored", "other_censored", "detectable", "detectable_doubled",
            ],
            (
                (
                    e.measure, e.arm, e.other, e.seeds, e.arm_value, e.other_value, e.difference.value,
                    e.difference.low, e.difference.high, e.p, e.p_flips, e.p_holm, *e.censored, e.detectable,
                    e.detectable_doubled,
                )
                for e in facts.effects
            ),
        ),
        "costs.csv": sheet(
            ["arm", "runs", *cost_names(facts.costs), "wall_s", "tokens_per_effective", "low", "high"],
            (
                (
                    c.arm, c.runs, *(c.amounts.get(name) for name in cost_names(facts.costs)), c.wall_s, c.group.value,
                    c.group.low, c.group.high,
                )
                for c in facts.costs
            ),
        ),
    }  # fmt: skip


def sheet(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Writes rows as CSV, with all digits; a missing number is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[_blank(cell) for cell in row] for row in rows])
    return text.getvalue()


def _blank(cell: object) -> object:
    return "" if cell is None or (isinstance(cell, float) and not np.isfinite(cell)) else cell


def around(estimate: Interval) -> str:
    """Writes a value and, in brackets, its interval if there is one."""
    return (
        f"{number(estimate.value)} ({interval(estimate.low, estimate.high)})"
        if estimate.known
        else number(estimate.value)
    )


def _cell(value: float | None) -> str:
    return "–" if value is None else amount(value)


def _cost_title(name: str) -> str:
    base, _, unit = name.rpartition("_")
    return f"{base.replace('_', ' ')}, {unit}" if base and unit in ("s", "tokens") else name.replace("_", " ")
