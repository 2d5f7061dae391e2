"""Renders a study's report as one HTML file and as Markdown, with the same sentences and tables.

The HTML file needs no server and loads nothing from a network. Names, errors and settings are escaped: by the template
engine in the page, as JSON in script blocks, and for Markdown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saerl_lightning.plan_page import frame
from saerl_lightning.plan_page.charts import COLOURS, NOTHING
from saerl_lightning.plan_page.tables import Table
from saerl_lightning.study.report import charts, tables
from saerl_lightning.study.report.facts import UNITS, StudyFacts
from saerl_lightning.study.report.findings import answer, cautions, status
from saerl_lightning.study.report.recovery import recovery_table
from saerl_lightning.study.report.section import Section

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Opacity of a table's darkest cell; text on it stays readable in the light and the dark theme.
DEEPEST = 0.42

PACKAGE = __name__.rpartition(".")[0]


@dataclass(frozen=True)
class Drawn:
    """A chart on the page."""

    key: str  # its figure's name in the page's data
    title: str


@dataclass(frozen=True)
class HeatRow:
    """A row of the accuracy table: its head, and cells of a text and a colour depth."""

    head: tuple[str, str, str]  # kind, name, questions
    cells: Sequence[tuple[str, float]]


def render(facts: StudyFacts) -> str:
    """Renders the HTML page; equal facts give an equal page."""
    figures, against, maps = _figures(facts), _against(facts), _maps(facts)
    sections = {f"section{k}": dict(each.figure) for k, each in enumerate(facts.sections) if each.figure is not None}
    drawn = {**figures, **{each.key: figure for each, figure in [*against, *maps]}, **sections}
    template = frame.templates(PACKAGE).get_template("study.html")
    return template.render(
        facts=facts,
        units=UNITS,
        status=status(facts),
        answer=answer(facts),
        cautions=cautions(facts),
        overview=tables.overview(facts),
        tables={table.key: table for table in _tables(facts)},
        heat=heat(facts),
        charts=set(drawn),
        against=[each for each, _ in against],
        maps=[each for each, _ in maps],
        sections=[(f"section{k}", each, _section_table(each)) for k, each in enumerate(facts.sections)],
        data=frame.script_json({"figures": drawn, "map": None, "colours": COLOURS, "nothing": NOTHING}),
        style=frame.asset("page.css") + frame.asset("study.css", PACKAGE),
        script=frame.asset("page.js"),
        plotly=frame.plotly_script(),
    )


def markdown(facts: StudyFacts) -> str:
    """Renders the same sentences and tables as Markdown, without figures."""
    lines = [f"# {_cell(facts.name)}", "", *_opening(facts, tables.overview(facts))]
    for table in _tables(facts):
        if table.rows:
            lines += ["", f"## {_cell(table.title)}", "", *markdown_table(table)]
    for section in facts.sections:
        lines += ["", f"## {_cell(section.title)}"]
        lines += [part for paragraph in section.paragraphs for part in ("", _cell(paragraph))]
        lines += ["", *markdown_table(_section_table(section))] if section.rows else []
    return "\n".join(lines) + "\n"


def tables_section(facts: StudyFacts, more: Sequence[tuple[str, str]] = ()) -> str:
    """Renders sentences and tables without headings, for another page; single runs and curves are left to the CSVs.

    Args:
        facts: Facts of the study.
        more: Further lines of the study's overview, each a name and a text.
    """
    lines = _opening(facts, [*tables.overview(facts), *more])
    for table in _tables(facts):
        if table.rows and table.key not in ("curves", "runs"):
            lines += ["", f"**{_cell(table.title)}**", "", *markdown_table(table)]
    return "\n".join(lines) + "\n"


def _opening(facts: StudyFacts, overview: Sequence[tuple[str, str]]) -> list[str]:
    """Lines of the opening: results, their limits, and the study's overview."""
    lines = [f"**{said}**", ""] if (said := status(facts)) else []
    lines += [" ".join(map(_cell, answer(facts))), ""]
    lines += [_cell(facts.gate), ""] if facts.gate else []
    lines += [f"- {_cell(each)}" for each in cautions(facts)] + [""]
    return [*lines, *(f"- {name}: {_cell(value)}" for name, value in overview)]


def heat(facts: StudyFacts) -> list[HeatRow]:
    """Accuracy table with colours: in each row the best arm has the deepest colour, the worst the palest."""
    arms = [arm.name for arm in facts.arms if any(arm.name in group.accuracy for group in facts.groups)]
    rows = []
    for group, row in zip(facts.groups, tables.groups(facts).rows, strict=True):
        values = np.array([group.accuracy.get(arm, np.nan) for arm in arms])
        low, high = np.nanmin(values), np.nanmax(values)
        depth = np.nan_to_num((values - low) / (high - low)) if high > low else np.zeros(len(values))
        cells = list(zip(row[3:], (DEEPEST * depth).round(3).tolist(), strict=True))
        rows.append(HeatRow((row[0], row[1], row[2]), cells))
    return rows


def _tables(facts: StudyFacts) -> list[Table]:
    writers = (
        recovery_table, tables.arms, tables.groups, tables.costs, tables.scores,
        tables.curves, tables.runs,
    )  # fmt: skip
    return [*tables.effects(facts), *(writer(facts) for writer in writers)]


def _section_table(section: Section) -> Table:
    return Table("section", section.title, section.columns, section.rows)


def _figures(facts: StudyFacts) -> dict[str, Any]:
    """Figures for which the study has data, as plotly's JSON."""
    drawn: dict[str, Figure] = {}
    if facts.curves:
        drawn["curves"] = charts.curves(facts)
    if any(each.measure == "end" for each in facts.effects):
        drawn["forest"] = charts.forest(facts)
    if any(np.isfinite(each.quality.value) for each in facts.recoveries):
        drawn["knowing"] = charts.knowing(facts)
    if np.isfinite(facts.target):
        drawn["reach"] = charts.reach(facts)
    if any(name.endswith("_s") for cost in facts.costs for name in cost.amounts):
        drawn["costs"] = charts.costs(facts)
    return {name: frame.plain(figure) for name, figure in drawn.items()}


def _against(facts: StudyFacts) -> list[tuple[Drawn, dict[str, Any]]]:
    by_arm = {curve.arm: curve for curve in facts.curves}
    if facts.baseline not in by_arm:
        return []
    baseline = by_arm.pop(facts.baseline)
    return [
        (Drawn(f"against{k}", arm), frame.plain(charts.against(facts, curve, baseline)))
        for k, (arm, curve) in enumerate(by_arm.items())
    ]


def _maps(facts: StudyFacts) -> list[tuple[Drawn, dict[str, Any]]]:
    return [
        (Drawn(f"map{k}x{part}", f"{each.arm}, seed {each.seed}"), frame.plain(figure))
        for k, each in enumerate(facts.maps)
        for part, figure in enumerate(charts.plan_maps(each))
    ]


def markdown_table(table: Table) -> list[str]:
    """Lines of a table in Markdown.

    Args:
        table: Table of texts.
    """
    rules = [":--" if k < table.left else "--:" for k in range(len(table.columns))]
    rows = [map(_cell, table.columns), rules, *(map(_cell, row) for row in table.rows)]
    return [f"| {' | '.join(row)} |" for row in rows]


def _cell(text: str) -> str:
    """Escapes a text so that it ends no cell, starts no HTML tag and makes no link."""
    for raw, written in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("[", "\\["), ("`", "\\`")):
        text = text.replace(raw, written)
    return " ".join(text.split())
