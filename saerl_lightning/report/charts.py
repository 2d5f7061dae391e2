"""The page's charts, as plotly figures without colours of paper and ink: the page's script gives those, light or dark.

A trace whose `meta` is "ink" gets the colour of the text. Steps are counted from 1, as people do.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from saerl_lightning.report.ledger import Ledger
from saerl_lightning.report.palette import COLOURS, DROPPED, KEPT, NOTHING, colour, mark
from saerl_lightning.report.steps import batch_table, binned

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

POINTS = 240  # a stream shows; more are averaged
COLUMNS = 1200  # of the strip of batches
TOPICS = 6  # shown by name; the others are one
OTHERS = "other topics"
LINES = 49  # clusters drawn as lines of their own: colours times marks


def difficulty_by_step(ledger: Ledger, names: Mapping[int, str]) -> Figure:
    """Mean difficulty of every batch: a line a cluster, the overall trend, and the band of four fifths of the prompts.

    Args:
        ledger: of a plan that rates difficulty.
        names: of the clusters, by number; empty without clusters.
    """
    from plotly.graph_objects import Figure, Scatter

    table = batch_table(ledger)
    figure = Figure()
    steps, low, mean, high = table.trend()
    band = np.concatenate([high, low[::-1]])
    figure.add_scatter(
        x=np.concatenate([steps, steps[::-1]]), y=band, fill="toself", fillcolor="rgba(140,140,140,0.18)", mode="lines",
        line={"width": 0}, name="four fifths of the prompts", hoverinfo="skip",
    )  # fmt: skip
    for cluster in sorted(names)[:LINES]:
        own = table.cluster == cluster
        x, y = binned(table.step[own] + 1, table.difficulty[own], POINTS)
        line, shape = {"color": colour(cluster), "width": 1.2}, {"symbol": mark(cluster), "size": 6}
        figure.add_trace(Scatter(x=x, y=y, mode="lines+markers", name=names[cluster], line=line, marker=shape))
    rest = table.cluster < 0
    if rest.any():
        x, y = binned(table.step[rest] + 1, table.difficulty[rest], POINTS)
        label = "batches of several clusters" if names else "batches"
        figure.add_scatter(
            x=x, y=y, mode="markers", name=label, marker={"color": NOTHING, "size": 5, "symbol": "x-thin-open"}
        )
    figure.add_scatter(x=steps, y=mean, mode="lines", name="all prompts", line={"width": 3}, meta="ink")
    steps_from_zero = {"title": "step", "rangemode": "tozero"}
    figure.update_layout(xaxis=steps_from_zero, yaxis={"title": "difficulty (rating)"}, hovermode="closest")
    return figure


def composition(ledger: Ledger, names: Mapping[int, str]) -> Figure:
    """Which clusters each step serves: a row a cluster, darker where it fills more of the batch."""
    from plotly.graph_objects import Figure, Heatmap

    clusters = sorted(names)
    shares, steps = batch_table(ledger).shares(clusters, COLUMNS)  # (K, columns), (columns,)
    figure = Figure(
        Heatmap(
            z=shares.round(3), x=steps, y=[names[cluster] for cluster in clusters], zmin=0, zmax=1,
            colorscale=[[0, "rgba(0,114,178,0)"], [1, COLOURS[0]]], showscale=False,
            hovertemplate="step %{x}<br>%{y}<br>%{z:.0%} of the batch<extra></extra>",
        )
    )  # fmt: skip
    figure.update_layout(
        height=110 + 19 * len(clusters),
        xaxis={"title": "step", "showgrid": False},
        yaxis={"autorange": "reversed", "type": "category", "showgrid": False, "dtick": 1},
    )
    return figure


def cluster_sizes(ledger: Ledger, names: Mapping[int, str]) -> Figure:
    """Planned prompts of each cluster, stacked by topic; the largest cluster is on top."""
    from plotly.graph_objects import Bar, Figure

    planned = ledger.planned
    order = list(names)  # largest first
    figure = Figure()
    for position, (topic, members) in enumerate(_topics(ledger)):
        sizes = Counter(ledger.cluster[planned & members].tolist())
        shade = {"color": colour(position), "pattern": {"shape": "/" if topic == OTHERS else ""}}
        bars = [sizes.get(cluster, 0) for cluster in order]
        figure.add_trace(Bar(x=bars, y=[names[c] for c in order], orientation="h", name=topic, marker=shade))
    figure.update_layout(
        barmode="stack",
        legend={"traceorder": "normal"},
        bargap=0.25,
        height=110 + 22 * len(order),
        xaxis={"title": "prompts"},
        yaxis={"autorange": "reversed", "type": "category", "showgrid": False, "dtick": 1},
    )
    return figure


def quality_histogram(ledger: Ledger, reason: str, cut: float | None) -> Figure:
    """How the filter rates the pool, with what it dropped in another colour.

    Args:
        ledger: of a plan that rates quality.
        reason: the filter's own, as the ledger has it.
        cut: the rating below which it drops, where it says so.
    """
    from plotly.graph_objects import Bar, Figure

    dropped = ledger.reason == reason
    rated = np.isfinite(ledger.quality) & (ledger.planned | dropped)  # what went before the filter came is not its
    dropped &= rated
    edges = np.histogram_bin_edges(ledger.quality[rated], bins=60)
    centres, width = (edges[1:] + edges[:-1]) / 2, float(edges[1] - edges[0])
    figure, total = Figure(), np.zeros(len(centres))
    looks = {"kept": {"color": KEPT}, "dropped by the filter": {"color": DROPPED, "pattern": {"shape": "/"}}}
    for (name, look), members in zip(looks.items(), (rated & ~dropped, dropped), strict=True):
        heights = np.histogram(ledger.quality[members], edges)[0]
        total = total + heights
        figure.add_trace(Bar(x=centres, y=heights, width=width, name=name, marker=look))
    if cut is not None and np.isfinite(cut):
        line = {"width": 2, "dash": "dash"}
        x, y, name = [cut, cut], [0, int(total.max())], f"cut at {cut:.3g}"
        figure.add_scatter(x=x, y=y, mode="lines", name=name, line=line, meta="ink")
    figure.update_layout(
        legend={"traceorder": "normal"},
        barmode="stack",
        bargap=0.02,
        xaxis={"title": "quality (rating)"},
        yaxis={"title": "prompts"},
    )
    return figure


def _topics(ledger: Ledger) -> Sequence[tuple[str, np.ndarray]]:
    """The most frequent topics and who has them, (N,); the others together."""
    frequent = [topic for topic, _ in Counter(ledger.topic[ledger.planned].tolist()).most_common()]
    shown = frequent if len(frequent) <= TOPICS + 1 else frequent[:TOPICS]
    named = [(html.escape(topic, quote=False) or "no topic", ledger.topic == topic) for topic in shown]
    others = ~np.isin(ledger.topic, shown)
    return [*named, (OTHERS, others)] if others[ledger.planned].any() else named
