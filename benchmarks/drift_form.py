"""The form of what `drift.py` writes: scores as text, lines over steps, sections of a report, and one page of Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from signal_tasks import Finding

from saerl_lightning.data.scores import Score
from saerl_lightning.report.palette import COLOURS, MARKS

Section = dict[str, Any]


def score(finding: Finding) -> Score:
    """Spearman of a finding."""
    return Score(*(finding.numbers[f"spearman{end}"] for end in ("", "_low", "_high")))


def shown(value: Score, form: str = ".3f") -> str:
    """A value and its interval."""
    return f"{value.value:{form}} [{value.low:{form}}, {value.high:{form}}]"


def figure(lines: Mapping[str, Sequence[tuple[int, Score]]], what: str) -> dict[str, Any]:
    """One line a name over the steps, with intervals; what is of the old probe is dashed."""
    traces = []
    for place, (name, points) in enumerate(lines.items()):
        values = [each for _, each in points]
        bars = {"array": [v.high - v.value for v in values], "arrayminus": [v.value - v.low for v in values]}
        traces.append(
            {
                "x": [step for step, _ in points],
                "y": [each.value for each in values],
                "name": name,
                "mode": "lines+markers",
                "line": {"color": COLOURS[place], "dash": "dash" if "probe" in name else "solid"},
                "marker": {"color": COLOURS[place], "symbol": MARKS[place], "size": 8},
                "error_y": {"type": "data", "symmetric": False, "thickness": 1, **bars},
            }
        )
    return {"data": traces, "layout": {"xaxis": {"title": {"text": "step"}}, "yaxis": {"title": {"text": what}}}}


def section(title: str, text: str, columns: list[str], rows: list[list[Any]], drawn: dict[str, Any]) -> Section:
    """A section of a report, as `study report` reads it."""
    return {"title": title, "text": text, "columns": columns, "rows": rows, "figure": drawn}


def markdown(found: Mapping[str, Section]) -> str:
    """The sections' words and tables on one page."""
    parts = []
    for each in found.values():
        head = ["| " + " | ".join(each["columns"]) + " |", "| --- |" + " ---: |" * (len(each["columns"]) - 1)]
        body = ["| " + " | ".join(map(str, row)) + " |" for row in each["rows"]]
        parts.append("\n".join([f"## {each['title']}", "", each["text"], "", *head, *body]))
    return "\n\n".join(parts) + "\n"
