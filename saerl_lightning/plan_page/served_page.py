"""The page of what a run served: beliefs beside measurements, calibration, and what became of the prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from saerl_lightning.plan_page import tables
from saerl_lightning.plan_page.charts import COLOURS, NOTHING, binned
from saerl_lightning.plan_page.frame import asset, plain, plotly_script, script_json, templates
from saerl_lightning.plan_page.served import Served

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

POINTS = 120  # largest number of points of a line: means over equal stretches of steps
TITLES = {
    "rates": "Pass rate: believed and measured",
    "chances": "Share of groups that vary: predicted and measured",
    "reliability": "How often groups varied, by the predicted chance",
}


def render_served(served: Served, excluded: Sequence[str] = ()) -> str:
    """Renders the page. Equal runs give equal pages.

    Args:
        served: What the run served.
        excluded: Reason of every prompt that is served no more, one a prompt.
    """
    figures = {}
    if len(served.steps):
        figures["rates"] = over_time(served.steps[:, 0], served.steps[:, 1], "pass rate")
        figures["chances"] = over_time(served.steps[:, 2], served.steps[:, 3], "share of groups")
    if served.reliability[:, 0].any():
        figures["reliability"] = reliability(served)
    return (
        templates()
        .get_template("served.html")
        .render(
            headline=headline(served),
            fates=fates(served, excluded),
            waits=waits(served),
            bins=reliability_table(served),
            charts={name: title for name, title in TITLES.items() if name in figures},
            data=script_json(
                {
                    "figures": {name: plain(figure) for name, figure in figures.items()},
                    "map": None,
                    "colours": COLOURS,
                    "nothing": NOTHING,
                }
            ),
            style=asset("page.css"),
            script=asset("page.js"),
            plotly=plotly_script(),
        )
    )


def headline(served: Served) -> str:
    """Says in two sentences how much was served, and how much of it varied."""
    columns = served.columns
    seen, groups = int((columns["times_served"] > 0).sum()), int(columns["times_served"].sum())
    said = f"{tables.count(len(served.steps))} steps served {tables.count(groups)} groups of {tables.count(seen)} prompts; "
    said += f"{tables.count(len(served) - seen)} of {tables.count(len(served))} were never served."
    if not len(served.steps):
        return said
    predicted, varied = served.steps[:, 2:].T
    told = "" if np.isnan(predicted).all() else f", where {np.nanmean(predicted):.0%} was predicted"
    return f"{said} {np.mean(varied):.0%} of the groups varied{told}."


def over_time(believed: Float[np.ndarray, " S"], measured: Float[np.ndarray, " S"], axis: str) -> Figure:
    """Draws two lines over the steps, as means over equal stretches of them.

    Args:
        believed: What was believed before each step; NaN if nothing was.
        measured: What was measured in it.
        axis: Title of the vertical axis.
    """
    from plotly.graph_objects import Figure

    figure, steps = Figure(), np.arange(1.0, len(measured) + 1)
    for name, values, shade in (("measured", measured, COLOURS[0]), ("believed before", believed, COLOURS[1])):
        known = np.isfinite(values)
        x, y = binned(steps[known], values[known], POINTS)
        if len(x):
            figure.add_scatter(x=x, y=y, mode="lines+markers", name=name, line={"color": shade}, marker={"size": 4})
    figure.update_layout(xaxis={"title": "step", "rangemode": "tozero"}, yaxis={"title": axis, "range": [0, 1]})
    return figure


def reliability(served: Served) -> Figure:
    """Draws the share of groups that varied in every tenth of predicted chances, with 95 % intervals of Wilson."""
    from plotly.graph_objects import Figure
    from scipy.stats import binomtest

    counts, chances, varied = served.reliability[served.reliability[:, 0] > 0].T
    share = varied / counts
    low, high = np.array(
        [binomtest(int(k), int(n)).proportion_ci(method="wilson") for k, n in zip(varied, counts, strict=True)]
    ).T
    figure = Figure()
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", name="as predicted", line={"dash": "dot", "color": NOTHING})
    figure.add_scatter(
        x=chances / counts, y=share, mode="markers", name="groups", marker={"color": COLOURS[0], "size": 9},
        error_y={"type": "data", "symmetric": False, "array": high - share, "arrayminus": share - low, "color": COLOURS[0]},
        text=[f"{int(n)} groups" for n in counts], hovertemplate="%{text}<br>%{x:.2f} → %{y:.2f}<extra></extra>",
    )  # fmt: skip
    unit = {"range": [0, 1]}
    figure.update_layout(
        xaxis={"title": "predicted chance to vary", **unit}, yaxis={"title": "share that varied", **unit}
    )
    return figure


def reliability_table(served: Served) -> tables.Table:
    """Lists the tenths of predicted chances that occurred: groups, mean chance, share that varied."""
    rows = [
        (f"{low / 10:.1f} to {(low + 1) / 10:.1f}", tables.count(n), f"{chance / n:.3f}", f"{varied / n:.3f}")
        for low, (n, chance, varied) in enumerate(served.reliability.tolist())
        if n
    ]
    return tables.Table("reliability", "Calibration", ("predicted", "groups", "mean predicted", "varied"), rows)


def fates(served: Served, excluded: Sequence[str]) -> tables.Table:
    """Counts prompts by what became of them: never served, served once, twice, …, excluded and why."""
    often = Counter(np.minimum(served.columns["times_served"], 5).tolist())
    names = [
        "never served",
        "served once",
        "served twice",
        "served 3 times",
        "served 4 times",
        "served 5 times or more",
    ]
    rows = [(names[times], often[times]) for times in sorted(often)]
    rows += [(f"excluded: {why}", number) for why, number in Counter(excluded).most_common()]
    listed = [(name, tables.count(number), tables.share(number, len(served))) for name, number in rows]
    return tables.Table("fates", "What became of the prompts", ("fate", "prompts", "of the pool"), listed)


def waits(served: Served) -> tables.Table:
    """Lists why prompts waited: how many did, and how many steps each on average."""
    columns, rows = served.columns, []
    waited = columns["waits"] > 0
    for why, number in Counter(columns["why"][waited].tolist()).most_common():
        steps = columns["waits"][waited & (columns["why"] == why)].mean()
        rows.append((why, tables.count(number), tables.number(float(steps))))
    return tables.Table("waits", "Why prompts waited", ("last reason", "prompts", "steps each"), rows)
