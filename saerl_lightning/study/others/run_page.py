"""What a table of runs says, as sentences and tables in Markdown, and all comparisons as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np

from saerl_lightning.plan_page.tables import Table, count, number
from saerl_lightning.study.others.run_effects import MOST_SEEDS, RunComparison
from saerl_lightning.study.others.run_table import RunTable
from saerl_lightning.study.report.findings import probability, signed
from saerl_lightning.study.report.page import markdown_table
from saerl_lightning.study.statistics import Estimate


def run_page(table: RunTable, compared: RunComparison) -> str:
    """Writes the result in sentences, then its tables.

    Args:
        table: Runs that were compared.
        compared: Comparison of the methods in this table.
    """
    lines = [" ".join(_sentences(table, compared)), ""]
    lines += [f"- {each}" for each in [*_cautions(table, compared), *table.left_out]]
    for each in (_methods(compared), _powers(compared), _effects(compared)):
        lines += ["", f"**{each.title}**", "", *markdown_table(each)]
    return "\n".join(lines) + "\n"


def sheet(compared: RunComparison) -> str:
    """Writes all comparisons with all digits as CSV, one a row.

    Args:
        compared: Comparison of a table of runs.
    """
    written = io.StringIO()
    rows = csv.writer(written, lineterminator="\n")
    ends = [f"{name}_{part}" for name in ("these", "like") for part in ("low", "high", "p")]
    rows.writerow(["setting", "method", "baseline", "runs", "baseline_runs", "difference", *ends, "p_holm"])
    for each in compared.effects:
        numbers = [value for part in (each.these, each.like) for value in (part.low, part.high, part.p)]
        rows.writerow([each.setting, each.method, each.baseline, *each.runs, each.these.value, *numbers, each.p_holm])
    return written.getvalue()


def _sentences(table: RunTable, compared: RunComparison) -> list[str]:
    effects = compared.effects
    outside = [each for each in effects if each.like.low > 0 or each.like.high < 0]
    stand = [each for each in effects if each.p_holm <= 0.05]
    found, needed = [each.found for each in compared.power], [each.seeds for each in compared.power]
    return [
        f"{sum(each.runs for each in compared.power)} runs in {len(table.settings)} settings, {len(table.benchmarks)} "
        f"benchmarks: of {len(effects)} comparisons {_none(len(outside))} an interval over seeds and benchmarks that leaves "
        f"out 0, before any correction; after Holm's {_none(len(stand))} one.",
        f"These seeds would have found a true difference of {_span(found)} points four times in five, in one comparison "
        f"alone on these benchmarks; one of {number(compared.points)} needs {_seeds(min(needed))} to "
        f"{_seeds(max(needed))} seeds of each of two methods.",
    ]


def _cautions(table: RunTable, compared: RunComparison) -> list[str]:
    return [
        "A run's score is its mean over the benchmarks. Runs are not paired; the methods of a setting share one variance of "
        "runs, without which three seeds say next to nothing, and which is wrong where a method's runs spread more.",
        f"Holm's correction is over {len(compared.effects)} comparisons with intervals over seeds and benchmarks, and over "
        f"the {len(compared.methods)} methods where they are averaged over settings.",
        f"Benchmarks, in equal weights: {', '.join(table.benchmarks)}.",
    ]


def _methods(compared: RunComparison) -> Table:
    columns = ("method", "settings", "difference", "95 % interval, over seeds", "p", "p, Holm")
    rows = [
        (
            each.method,
            count(each.settings),
            signed(each.difference.value),
            _interval(each.difference),
            probability(each.difference.p),
            probability(each.p_holm),
        )
        for each in compared.methods
    ]
    return Table("methods", "Methods against their baseline, on average over settings", columns, rows)


def _powers(compared: RunComparison) -> Table:
    points = number(compared.points)
    columns = (
        "setting", "baseline", "methods", "runs", "spread of a run", "could be found", "with Holm",
        f"seeds for {points}", "with Holm",
    )  # fmt: skip
    rows = [
        (
            each.setting,
            each.baseline,
            count(each.methods),
            count(each.runs),
            *(number(value) for value in (each.spread, each.found, each.found_holm)),
            _seeds(each.seeds),
            _seeds(each.seeds_holm),
        )
        for each in compared.power
    ]
    return Table("power", "What could have been found, on these benchmarks", columns, rows, left=2)


def _effects(compared: RunComparison) -> Table:
    columns = (
        "setting", "method", "baseline", "difference", "95 % interval, over seeds", "over seeds and benchmarks", "p",
        "p, Holm",
    )  # fmt: skip
    rows = [
        (
            each.setting,
            each.method,
            each.baseline,
            signed(each.these.value),
            _interval(each.these),
            _interval(each.like),
            probability(each.like.p),
            probability(each.p_holm),
        )
        for each in compared.effects
    ]
    return Table("effects", "Every comparison", columns, rows, left=3)


def _interval(estimate: Estimate) -> str:
    return f"{signed(estimate.low)} to {signed(estimate.high)}" if np.isfinite(estimate.low) else "–"


def _none(found: int) -> str:
    return "none has" if found == 0 else "one has" if found == 1 else f"{found} have"


def _span(values: Sequence[float]) -> str:
    return f"{number(min(values))} to {number(max(values))}"


def _seeds(needed: int) -> str:
    return f"over {count(MOST_SEEDS)}" if needed >= MOST_SEEDS else count(needed)
