"""The form of what `drift.py` writes: scores as text, lines over steps, and its sections on one page of Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from signal_tasks import Finding

from saerl_lightning.causal.figures import bars, chart, line
from saerl_lightning.data.scores import Interval
from saerl_lightning.study.report.section import Section


def score(finding: Finding) -> Interval:
    """Spearman of a finding."""
    return Interval(*(finding.numbers[f"spearman{end}"] for end in ("", "_low", "_high")))


def shown(value: Interval, form: str = ".3f") -> str:
    """A value and its interval."""
    return f"{value.value:{form}} [{value.low:{form}}, {value.high:{form}}]"


def figure(lines: Mapping[str, Sequence[tuple[int, Interval]]], what: str) -> dict[str, Any]:
    """One line a name over the steps, with intervals; what is of the old probe is dashed."""
    traces = []
    for place, (name, points) in enumerate(lines.items()):
        steps, values = [step for step, _ in points], [each for _, each in points]
        drawn = line(name, steps, [each.value for each in values], place, "dash" if "probe" in name else "solid")
        traces.append(drawn.update(error_y={**bars(values), "thickness": 1}))
    return chart(traces, xaxis={"title": {"text": "step"}}, yaxis={"title": {"text": what}})


def markdown(found: Mapping[str, Section]) -> str:
    """The sections' words and tables on one page."""
    parts = []
    for each in found.values():
        head = ["| " + " | ".join(each.columns) + " |", "| --- |" + " ---: |" * (len(each.columns) - 1)]
        body = ["| " + " | ".join(row) + " |" for row in each.rows]
        parts.append("\n".join([f"## {each.title}", "", each.text, "", *head, *body]))
    return "\n\n".join(parts) + "\n"
