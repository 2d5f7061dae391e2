"""Charts of the plan page, as plotly figures. The page's script adds the colours of the light or the dark theme.

A trace with `meta` "ink" gets the text's colour. Steps are counted from 1.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from saerl_lightning.plan_page.ledger import Ledger

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


# Apart for every eye, on a light and on a dark page.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#3D2BFF", "#A5C3A5", "#694B00",
)  # fmt: skip
MARKS = ("circle", "diamond", "square", "triangle-up", "cross", "x", "star")
PATTERNS = ("", "/", "x", ".", "-", "|", "+")  # plotly's names of bar patterns

KEPT, DROPPED = COLOURS[0], COLOURS[1]
NOTHING = "#8C8C8C"  # without cluster or topic, or of too many to have a colour of its own


def colour(category: int) -> str:
    """Returns the colour of a category; grey for negative numbers."""
    return COLOURS[category % len(COLOURS)] if category >= 0 else NOTHING


def pattern(category: int) -> str:
    """Returns plotly's name of a category's pattern. Categories of one colour have different patterns."""
    return PATTERNS[(category + category // len(COLOURS)) % len(PATTERNS)]


def mark(category: int) -> str:
    """Returns plotly's name of a category's mark. Categories of one colour have different marks."""
    return MARKS[(category + 1 + max(category, 0) // len(COLOURS)) % len(MARKS)]


def cluster_colours(clusters: Sequence[int]) -> dict[int, str]:
    """Returns the colours of clusters. No two share one: those that come after the last colour are grey.

    Args:
        clusters: Numbers of the clusters, the largest cluster first.
    """
    return {cluster: COLOURS[k] if k < len(COLOURS) else NOTHING for k, cluster in enumerate(clusters)}


MAJORITY = 0.5  # share of a batch that one cluster must fill
TREND = 60  # largest number of points of the overall trend
WINDOW = 0.1  # share of the epoch averaged per point of the trend: longer than one round through all clusters


@dataclass(frozen=True, eq=False)
class BatchTable:
    """Numbers per batch (B) and per served prompt (S)."""

    step: Int[np.ndarray, " B"]  # from 0
    cluster: Int[np.ndarray, " B"]  # cluster that fills at least half of the batch; -1 for none
    difficulty: Float[np.ndarray, " B"]  # mean of the batch's ratings; NaN without ratings
    prompt_step: Int[np.ndarray, " S"]
    prompt_cluster: Int[np.ndarray, " S"]
    prompt_difficulty: Float[np.ndarray, " S"]

    def trend(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Summarises the ratings in a tenth of the epoch around each of at most 60 steps.

        Returns:
            The steps (from 1), the tenth percentile, the mean and the ninetieth percentile.
        """
        rated = np.isfinite(self.prompt_difficulty)
        order = np.argsort(self.prompt_step[rated], kind="stable")
        steps, values = self.prompt_step[rated][order], self.prompt_difficulty[rated][order]
        centres = np.unique(np.linspace(0, len(self.step) - 1, TREND).round().astype(int))
        reach = WINDOW / 2 * len(self.step)
        ends = np.searchsorted(steps, centres - reach), np.searchsorted(steps, centres + reach, side="right")
        windows = [(c, values[low:high]) for c, low, high in zip(centres, *ends, strict=True) if high > low]
        numbers = np.array([(c + 1, *np.percentile(w, [10, 90]), w.mean()) for c, w in windows]).reshape(-1, 4)
        return numbers[:, 0].astype(int), numbers[:, 1], numbers[:, 3], numbers[:, 2]

    def shares(self, clusters: Sequence[int], most: int) -> tuple[Float[np.ndarray, "K C"], Int[np.ndarray, " C"]]:
        """Computes each cluster's share in up to `most` sections of the epoch, and the first step of each section."""
        columns = min(most, len(self.step))
        which = self.prompt_step * columns // len(self.step)
        counts = np.zeros((len(clusters), columns))
        listed = np.isin(self.prompt_cluster, clusters)
        np.add.at(counts, (np.searchsorted(clusters, self.prompt_cluster[listed]), which[listed]), 1)
        first = np.unique(self.step * columns // len(self.step), return_index=True)[1]
        return counts / np.bincount(which, minlength=columns), first + 1


def batch_table(ledger: Ledger) -> BatchTable:
    """Collects the numbers of each batch from a ledger."""
    served = np.flatnonzero(ledger.served)
    step, cluster, difficulty = ledger.batch[served], ledger.cluster[served], ledger.difficulty[served]
    rated = np.isfinite(difficulty)
    totals = np.bincount(step[rated], difficulty[rated], ledger.batches)
    number = np.bincount(step[rated], minlength=ledger.batches)
    mean = np.where(number > 0, totals / np.maximum(number, 1), np.nan)
    return BatchTable(np.arange(ledger.batches), _majority(step, cluster, ledger), mean, step, cluster, difficulty)


def binned(x: np.ndarray, y: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Averages neighbouring points until at most `most` are left. Points whose y is NaN are left out."""
    known = np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) <= most:
        return x, y
    which = np.arange(len(x)) * most // len(x)
    size = np.bincount(which)
    return np.bincount(which, x) / size, np.bincount(which, y) / size


def _majority(step: np.ndarray, cluster: np.ndarray, ledger: Ledger) -> Int[np.ndarray, " B"]:
    owner = np.full(ledger.batches, -1, dtype=np.int64)
    cells, sizes = np.unique(np.stack([step, cluster]), axis=1, return_counts=True)
    full = (sizes >= MAJORITY * ledger.batch_size) & (cells[1] >= 0)
    owner[cells[0, full]] = cells[1, full]  # of two equal halves, the cluster with the higher number
    return owner


POINTS = 240  # largest number of points per cluster's line; more are averaged
COLUMNS = 1200  # largest number of columns in the chart of batches
TOPICS = 6  # largest number of topics shown by name
OTHERS = "other topics"


def difficulty_by_step(ledger: Ledger, names: Mapping[int, str]) -> Figure:
    """Draws the mean difficulty of every batch: a line per cluster, the overall trend, and a band of 80 % of the prompts.

    Args:
        ledger: Ledger of a plan with difficulty ratings.
        names: Name of each cluster by number, the largest first; empty without clusters.
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
    # Before the marks, which it would hide in a small plan.
    figure.add_scatter(x=steps, y=mean, mode="lines", name="all prompts", line={"width": 3}, meta="ink")
    shown = list(names)[: len(COLOURS)]
    for cluster, shade in cluster_colours(shown).items():
        own = table.cluster == cluster
        x, y = binned(table.step[own] + 1, table.difficulty[own], POINTS)
        line, shape = {"color": shade, "width": 1.2}, {"size": 6}
        figure.add_trace(Scatter(x=x, y=y, mode="lines+markers", name=names[cluster], line=line, marker=shape))
    mixed, smaller = table.cluster < 0, (table.cluster >= 0) & ~np.isin(table.cluster, shown)
    of_several = "batches of several clusters" if names else "batches"
    for label, rest, symbol in (("smaller clusters", smaller, "circle-open"), (of_several, mixed, "x-thin-open")):
        x, y = binned(table.step[rest] + 1, table.difficulty[rest], POINTS)
        if len(x):
            look = {"color": NOTHING, "size": 5, "symbol": symbol}
            figure.add_scatter(x=x, y=y, mode="markers", name=label, marker=look)
    steps_from_zero = {"title": "step", "rangemode": "tozero"}
    figure.update_layout(xaxis=steps_from_zero, yaxis={"title": "difficulty (rating)"}, hovermode="closest")
    return figure


def composition(ledger: Ledger, names: Mapping[int, str]) -> Figure:
    """Draws the clusters that each step serves: a row per cluster, darker for larger shares of the batch."""
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
    """Draws the number of planned prompts per cluster, stacked by topic, with the largest cluster at the top."""
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
    """Draws a histogram of the filter's ratings, with dropped prompts in another colour.

    Args:
        ledger: Ledger of a plan with quality ratings.
        reason: Reason in the ledger for the prompts that the filter dropped.
        cut: Rating below which the filter drops prompts; null if unknown.
    """
    from plotly.graph_objects import Bar, Figure

    dropped = ledger.reason == reason
    # Prompts that were dropped before the filter are not part of its decision.
    rated = np.isfinite(ledger.quality) & (ledger.planned | dropped)
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
    """Returns the most frequent topics and their members, (N,), with the others combined."""
    frequent = [topic for topic, _ in Counter(ledger.topic[ledger.planned].tolist()).most_common()]
    shown = frequent if len(frequent) <= TOPICS + 1 else frequent[:TOPICS]
    named = [(html.escape(topic, quote=False) or "no topic", ledger.topic == topic) for topic in shown]
    others = ~np.isin(ledger.topic, shown)
    return [*named, (OTHERS, others)] if others[ledger.planned].any() else named
