"""The plan as one HTML file: readable from a disk, with no request to any host.

Everything that comes from the data is escaped: by the template engine in the page, and as JSON in the script blocks. The
browser is told to load nothing (Content-Security-Policy), so a prompt that got through would still reach nobody.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from saerl_lightning.report import charts, numbers, tables
from saerl_lightning.report.cards import make_cards
from saerl_lightning.report.comparison import Comparison
from saerl_lightning.report.glimpses import glimpses
from saerl_lightning.report.layout import map_points, sample
from saerl_lightning.report.ledger import versions
from saerl_lightning.report.notes import MEANINGS, absences, headline
from saerl_lightning.report.palette import COLOURS, MARKS, colour, glyph
from saerl_lightning.report.planned import PlannedRun

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

PACKAGE = "saerl_lightning.report"  # where the page's own files lie
POINTS = 6000  # on the map
HOVER = 160  # characters of a prompt that the map shows


def render(run: PlannedRun, arithmetic: Sequence[str] = (), compared: Comparison | None = None) -> str:
    """Writes the page. The same plan gives the same page.

    Args:
        run: the plan and what it was made from.
        arithmetic: what a run of it will do, a fact a line.
        compared: this plan held against another one; null leaves the section out.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    cards = make_cards(run)
    names = {card.number: card.title for card in cards}
    drawn, points = _figures(run, names), _map(run, names)
    environment = Environment(
        loader=PackageLoader(PACKAGE, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(colour=colour, glyph=glyph, isfinite=np.isfinite)
    environment.filters.update(number=numbers.number, count=numbers.count)
    return environment.get_template("page.html").render(
        ledger=run.ledger,
        headline=headline(run),
        absences=absences(run),
        glimpses=glimpses(run),
        cards=cards,
        most=max((card.size for card in cards), default=1),
        operations=_operations(run),
        reasons=tables.reasons(run.ledger),
        comparison=[] if compared is None else tables.comparison(compared),
        identical=compared is not None and compared.identical,
        arithmetic=arithmetic,
        versions=versions(),
        charts={name: title for name, title in TITLES.items() if name in drawn},
        has_map=points is not None,
        shown=len(points["x"]) if points else 0,
        data=script_json({"figures": drawn, "map": points, "colours": COLOURS, "marks": MARKS}),
        style=asset("page.css"),
        script=asset("page.js"),
        plotly=plotly_script(),
    )


TITLES = {
    "difficulty": "Difficulty by step",
    "composition": "Which cluster each step serves",
    "sizes": "Cluster sizes",
    "quality": "What the filter saw",
}


@dataclass(frozen=True)
class OperationTable:
    """An operation's numbers, explained."""

    slot: str
    name: str
    rows: list[tuple[str, str, str, str]]  # number, value, interval, what it means


def _operations(run: PlannedRun) -> list[OperationTable]:
    return [
        OperationTable(
            each.slot,
            each.name,
            [
                (name, numbers.number(value), numbers.interval(*ends), MEANINGS.get(name, ""))
                for name, value, ends in numbers.with_intervals(each.metrics)
            ],
        )
        for each in run.operations
    ]


def _figures(run: PlannedRun, names: dict[int, str]) -> dict[str, Any]:
    """The charts that this plan has something for, as plotly's JSON."""
    ledger, drawn = run.ledger, {}
    if run.rated:
        drawn["difficulty"] = charts.difficulty_by_step(ledger, names)
    if names:
        drawn["composition"] = charts.composition(ledger, names)
        drawn["sizes"] = charts.cluster_sizes(ledger, names)
    if np.isfinite(ledger.quality).any():
        filtering = run.operation("filtering")
        cut, reason = (filtering.metrics.get("threshold"), filtering.reason) if filtering else (None, "")
        drawn["quality"] = charts.quality_histogram(ledger, reason, cut)
    return {name: plain(figure) for name, figure in drawn.items()}


def plain(figure: Figure) -> dict[str, Any]:
    """The figure without plotly's default template: the page has its own looks."""
    figure.update_layout(template="none")
    written = figure.to_json()
    assert written is not None
    return json.loads(written)


def _map(run: PlannedRun, names: dict[int, str]) -> dict[str, Any] | None:
    """Points of a sample of the pool, and what the map can be coloured by; None without feature rows."""
    if run.features is None or len(run.prompts) < 3:
        return None
    ledger, rows = run.ledger, sample(len(run.ledger), POINTS)
    points = map_points(run.features[rows])
    difficulty = [round(value, 4) if np.isfinite(value) else None for value in ledger.difficulty[rows].tolist()]
    return {
        "x": points[:, 0].round(4).tolist(),
        "y": points[:, 1].round(4).tolist(),
        "uid": ledger.uid[rows].tolist(),
        "text": [text[:HOVER] for text in ledger.text[rows].tolist()],
        "topic": ledger.topic[rows].tolist(),
        "cluster": ledger.cluster[rows].tolist(),
        "difficulty": difficulty,
        "fate": ledger.fate[rows].tolist(),
        "step": (ledger.batch[rows] + 1).tolist(),
        "names": {str(cluster): name for cluster, name in names.items()},
    }


def script_json(data: dict[str, Any]) -> str:
    """JSON that may stand inside a script block: no text of the data can end it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def asset(name: str) -> str:
    """Reads one of the pages' own files."""
    return files(PACKAGE).joinpath(name).read_text(encoding="utf-8")


def plotly_script() -> str:
    """The charts' whole library, so that a page needs no host."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()
