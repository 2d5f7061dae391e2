"""The page's charts, as plotly figures without colours of paper and ink: the page's script gives those, light or dark.

A trace whose `meta` is "ink" gets the colour of the text. Steps are counted from 1, as people do.
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


COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#666666")
MARKS = ("circle", "diamond", "square", "triangle-up", "cross", "x", "star")
PATTERNS = ("", "/", "x", ".", "-", "|", "+")  # of bars, as plotly names them
GLYPHS = ("●", "◆", "■", "▲", "✚", "✖", "★")  # the marks, as text

KEPT, DROPPED = COLOURS[0], COLOURS[1]
NOTHING = "#8C8C8C"  # no cluster, no topic


def colour(category: int) -> str:
    """Colour of a category; grey for a negative one."""
    return COLOURS[category % len(COLOURS)] if category >= 0 else NOTHING


def mark(category: int) -> str:
    """Plotly's name of the category's mark."""
    return MARKS[category // len(COLOURS) % len(MARKS)] if category >= 0 else MARKS[0]


def pattern(category: int) -> str:
    """Plotly's name of the category's hatching; from the eighth on a colour has another one."""
    return PATTERNS[(category + category // len(COLOURS)) % len(PATTERNS)]


def glyph(category: int) -> str:
    """The category's mark as a character."""
    return GLYPHS[MARKS.index(mark(category))]


MAJORITY = 0.5  # of a batch makes it the cluster's
TREND = 60  # points of the overall trend
WINDOW = 0.1  # of the epoch that a point of the trend averages: longer than a round through all clusters


@dataclass(frozen=True, eq=False)
class BatchTable:
    """One row a batch, B of them, and one a served prompt, S of them."""

    step: Int[np.ndarray, " B"]  # from 0
    cluster: Int[np.ndarray, " B"]  # that fills at least half of the batch; -1 for none
    difficulty: Float[np.ndarray, " B"]  # mean over its rated prompts; NaN without
    prompt_step: Int[np.ndarray, " S"]
    prompt_cluster: Int[np.ndarray, " S"]
    prompt_difficulty: Float[np.ndarray, " S"]

    def trend(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """A tenth of the epoch around each of at most 60 steps, over its rated prompts.

        Returns:
            The steps (from 1), and there the tenth percentile, the mean and the ninetieth percentile.
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
        """Share of each stretch of the epoch that each cluster fills, in at most `most` stretches, with first steps."""
        columns = min(most, len(self.step))
        which = self.prompt_step * columns // len(self.step)
        counts = np.zeros((len(clusters), columns))
        listed = np.isin(self.prompt_cluster, clusters)
        np.add.at(counts, (np.searchsorted(clusters, self.prompt_cluster[listed]), which[listed]), 1)
        first = np.unique(self.step * columns // len(self.step), return_index=True)[1]
        return counts / np.bincount(which, minlength=columns), first + 1


def batch_table(ledger: Ledger) -> BatchTable:
    """Counts what each batch of a ledger holds."""
    served = np.flatnonzero(ledger.served)
    step, cluster, difficulty = ledger.batch[served], ledger.cluster[served], ledger.difficulty[served]
    rated = np.isfinite(difficulty)
    totals = np.bincount(step[rated], difficulty[rated], ledger.batches)
    number = np.bincount(step[rated], minlength=ledger.batches)
    mean = np.where(number > 0, totals / np.maximum(number, 1), np.nan)
    return BatchTable(np.arange(ledger.batches), _majority(step, cluster, ledger), mean, step, cluster, difficulty)


def binned(x: np.ndarray, y: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Averages neighbouring points until at most `most` are left; points without a y are left out."""
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
    owner[cells[0, full]] = cells[1, full]  # of two halves, the cluster of the higher number
    return owner


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
