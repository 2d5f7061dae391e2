"""Plotly figures of a study: curves, effects and costs of its arms, with optimiser steps on the x axis.

An arm has the same colour, mark and dash in every figure. The baseline has the colour of the text and is drawn with a
thicker line, so that the figures can be read without colours and on grey paper.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from saerl_lightning.data.scores import Interval
from saerl_lightning.plan_page import charts
from saerl_lightning.plan_page.charts import COLOURS, NOTHING, colour, mark, pattern
from saerl_lightning.study.report.facts import Curve, Effect, PlanMap, StudyFacts
from saerl_lightning.study.report.tables import cost_names

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
# Largest number of arms for which the common chart has bands; more bands would hide each other.
BANDED = 4
MAP_HEIGHT = 230
# Position of the legend: above the chart, because below a flat chart it would overlap the axis.
ABOVE = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}


def curves(facts: StudyFacts) -> Figure:
    """Draws every arm's mean over seeds, the range of its seeds if there are few arms, and the target."""
    from plotly.graph_objects import Figure

    figure = Figure()
    if len(facts.curves) <= BANDED:
        for curve in facts.curves:
            _band(figure, curve, _shade(facts, curve.arm))
    for curve in facts.curves:
        _line(figure, facts, curve)
    if np.isfinite(facts.target):
        last = max(int(curve.steps[-1]) for curve in facts.curves)
        line = {"color": NOTHING, "width": 1.5, "dash": "dot"}
        figure.add_scatter(x=[0, last], y=[facts.target] * 2, mode="lines", name="target", line=line)
    figure.update_layout(
        height=480,
        hovermode="closest",
        xaxis={"title": "step", "rangemode": "tozero"},
        yaxis={"title": text(facts.metric)},
    )
    return figure


def against(facts: StudyFacts, curve: Curve, baseline: Curve) -> Figure:
    """Draws one arm over the baseline: means, ranges, and each seed as a thin line."""
    from plotly.graph_objects import Figure

    figure = Figure()
    for each in (baseline, curve):
        _band(figure, each, _shade(facts, each.arm))
        for row in each.values:
            line = {"color": _shade(facts, each.arm), "width": 0.6}
            figure.add_scatter(
                x=each.steps, y=row, mode="lines", line=line, opacity=0.6, showlegend=False, hoverinfo="skip"
            )
    for each in (baseline, curve):
        _line(figure, facts, each)
    values = np.concatenate([each.values.ravel() for each in facts.curves])
    reach = [float(values.min()), float(values.max())]  # the same on every one of these charts
    room = 0.05 * (reach[1] - reach[0] or 1)
    figure.update_layout(
        height=260,
        showlegend=False,
        hovermode="closest",
        xaxis={"title": "step", "rangemode": "tozero"},
        yaxis={"range": [reach[0] - room, reach[1] + room]},
    )
    return figure


def forest(facts: StudyFacts) -> Figure:
    """Draws differences at the end with intervals; marks are filled if significant after Holm's correction."""
    from plotly.graph_objects import Figure

    shown = [each for each in facts.effects if each.measure == "end"]
    figure = Figure()
    looks = (("stands after Holm", True, "diamond"), ("does not, or is not primary", False, "circle-open"))
    for name, chosen, symbol in looks:
        own = [each for each in shown if each.significant is chosen]
        if not own:
            continue
        differences = [each.difference for each in own]
        marker = {"symbol": symbol, "size": 11, "color": COLOURS[0] if chosen else NOTHING, "line": {"width": 2}}
        figure.add_scatter(
            x=[each.value for each in differences], y=[_named(facts, each) for each in own], mode="markers", name=name,
            error_x=_bars(differences), marker=marker,
        )  # fmt: skip
    figure.add_vline(x=0, line={"color": NOTHING, "width": 1.5, "dash": "dot"})
    order = [_named(facts, each) for each in reversed(shown)]
    figure.update_layout(
        height=150 + 34 * len(shown),
        legend=ABOVE,
        showlegend=True,
        xaxis={
            "title": "difference" if facts.contrasted else f"difference from {text(facts.baseline)}",
            "rangemode": "tozero",
            "zeroline": False,
        },
        yaxis={"type": "category", "categoryorder": "array", "categoryarray": order, "showgrid": False},
    )
    return figure


def _named(facts: StudyFacts, effect: Effect) -> str:
    return text(facts.named(effect.arm, effect.other))


def knowing(facts: StudyFacts) -> Figure:
    """Draws each arm's gain over the null by how much its operation knew; one mark for each kind of score."""
    from plotly.graph_objects import Figure

    figure = Figure()
    shown = [each for each in facts.recoveries if np.isfinite(each.quality.value)]
    for place, score in enumerate(dict.fromkeys(each.score for each in shown)):
        own = [each for each in shown if each.score == score]
        figure.add_scatter(
            x=[each.quality.value for each in own], y=[each.gain.value for each in own], mode="markers+text",
            text=[text(each.arm) for each in own], textposition="top center", name=text(score),
            error_x=_bars([each.quality for each in own]), error_y=_bars([each.gain for each in own]),
            marker={"symbol": mark(place), "size": 10, "color": colour(place)},
        )  # fmt: skip
    figure.add_hline(y=0, line={"color": NOTHING, "width": 1.5, "dash": "dot"})
    figure.update_layout(
        height=420,
        legend=ABOVE,
        showlegend=True,
        xaxis={"title": "quality of the ratings, or agreement of the clusters with topics"},
        yaxis={"title": "gain over the null at the end", "zeroline": False},
    )
    return figure


def _bars(intervals: Sequence[Interval]) -> dict[str, object]:
    """Error bars of intervals; none where an interval is unknown."""
    return {
        "type": "data", "symmetric": False,
        "array": [each.high - each.value if each.known else 0 for each in intervals],
        "arrayminus": [each.value - each.low if each.known else 0 for each in intervals],
    }  # fmt: skip


def reach(facts: StudyFacts) -> Figure:
    """Draws when each run reached the target; an open triangle at the budget's end marks a run that did not."""
    from plotly.graph_objects import Figure

    figure = Figure()
    names = [arm.name for arm in facts.arms if facts.finished(arm.name)]
    looks = (("reached the target", "circle", True), ("never did (censored)", "triangle-right-open", False))
    for name, symbol, reached in looks:
        x, y, told = [], [], []
        for place, arm in enumerate(names):
            own = facts.finished(arm)
            for position, run in enumerate(own):
                if np.isfinite(run.reached) is np.bool_(reached):
                    x.append(run.reached if reached else run.last_step)
                    y.append(place + 0.5 * ((position + 1) / (len(own) + 1) - 0.5))  # beside each other, not on top
                    told.append(f"{text(arm)}, seed {run.seed}")
        if x:
            marker = {"symbol": symbol, "size": 10, "color": COLOURS[0] if reached else COLOURS[1]}
            figure.add_scatter(
                x=x, y=y, text=told, mode="markers", name=name, marker=marker,
                hovertemplate="%{text}<br>step %{x}<extra></extra>",
            )  # fmt: skip
    ticks = {"tickmode": "array", "tickvals": list(range(len(names))), "ticktext": [text(name) for name in names]}
    figure.update_layout(
        height=150 + 40 * len(names),
        legend=ABOVE,
        showlegend=True,
        xaxis={"title": "step", "rangemode": "tozero"},
        yaxis={**ticks, "range": [len(names) - 0.5, -0.5], "showgrid": False, "zeroline": False},
    )
    return figure


def costs(facts: StudyFacts) -> Figure:
    """Draws the seconds of a run, split into phases."""
    from plotly.graph_objects import Bar, Figure

    figure = Figure()
    names = [name for name in cost_names(facts.costs) if name.endswith("_s")]
    for position, name in enumerate(names):
        shade = {"color": colour(position), "pattern": {"shape": pattern(position)}}
        figure.add_trace(
            Bar(
                x=[cost.amounts.get(name, 0) for cost in facts.costs], y=[text(cost.arm) for cost in facts.costs],
                orientation="h", name=text(name.removesuffix("_s").replace("_", " ")), marker=shade,
            )
        )  # fmt: skip
    figure.update_layout(
        barmode="stack",
        bargap=0.35,
        height=150 + 34 * len(facts.costs),
        legend={**ABOVE, "traceorder": "normal"},
        xaxis={"title": "seconds a run"},
        yaxis={"autorange": "reversed", "type": "category", "showgrid": False, "dtick": 1},
    )
    return figure


def plan_maps(each: PlanMap) -> list[Figure]:
    """Draws difficulty by step, if prompts are rated, and clusters by step, if there are clusters."""
    ledger, figures = each.ledger, []
    if np.isfinite(ledger.difficulty[ledger.served]).any():
        figures.append(charts.difficulty_by_step(ledger, {}))
    clusters = np.unique(ledger.cluster[ledger.served & (ledger.cluster >= 0)]).tolist()
    if clusters:
        figures.append(charts.composition(ledger, {cluster: f"cluster {cluster}" for cluster in clusters}))
        figures[-1].update_layout(yaxis={"showticklabels": False, "title": f"{len(clusters)} clusters"})
    for figure in figures:
        figure.update_layout(height=MAP_HEIGHT, showlegend=False)
    return figures


def text(raw: str) -> str:
    """Escapes a text of the data, because plotly reads a few HTML tags in labels."""
    return html.escape(raw, quote=False)


def _place(facts: StudyFacts, arm: str) -> int:
    """Index of the arm among the arms without the baseline; negative for the baseline."""
    others: Sequence[str] = [each.name for each in facts.arms if each.name != facts.baseline]
    return others.index(arm) if arm in others else -1


def _shade(facts: StudyFacts, arm: str) -> str:
    return colour(_place(facts, arm))


def _band(figure: Figure, curve: Curve, shade: str) -> None:
    if len(curve.values) < 2:
        return
    red, green, blue = (int(shade[k : k + 2], 16) for k in (1, 3, 5))
    low, high = curve.values.min(0), curve.values.max(0)
    figure.add_scatter(
        x=np.concatenate([curve.steps, curve.steps[::-1]]), y=np.concatenate([high, low[::-1]]), fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.16)", mode="lines", line={"width": 0}, showlegend=False,
        hoverinfo="skip",
    )  # fmt: skip


def _line(figure: Figure, facts: StudyFacts, curve: Curve) -> None:
    place = _place(facts, curve.arm)
    looks = {"color": colour(place), "width": 2, "dash": DASHES[place % len(DASHES)]}
    figure.add_scatter(
        x=curve.steps, y=curve.mean, name=text(curve.arm), mode="lines+markers",
        line={"width": 3.5} if place < 0 else looks, meta="ink" if place < 0 else None,
        marker={"symbol": mark(place), "size": 7, "color": colour(place)},
    )  # fmt: skip
