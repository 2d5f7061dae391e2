"""Figures of the causal sections: dots with intervals, and lines, in colours that can be printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saerl_lightning.causal.feature_zeroing import Zeroed
from saerl_lightning.data.scores import Interval
from saerl_lightning.plan_page.charts import COLOURS, MARKS

if TYPE_CHECKING:
    from plotly.graph_objects import Scatter

APART = 0.16  # distance between the series of one row


def chart(traces: Sequence[Scatter], **layout: Any) -> dict[str, Any]:
    """Returns a figure as the JSON that a section holds, `data` and `layout`; plotly checks both.

    Args:
        traces: Traces from the back to the front.
        layout: Settings of plotly's layout. The page gives colours of paper and ink, so there is no template.
    """
    from plotly.graph_objects import Figure

    drawn = Figure(list(traces), layout).to_plotly_json()
    drawn["layout"].pop("template", None)
    return drawn


def dots(changes: Mapping[str, Mapping[str, Interval]], unit: str) -> dict[str, Any]:
    """Draws values with their intervals: one row a kind, one mark a series.

    Args:
        changes: Series by kind, drawn from the top in this order; all kinds have the same series.
        unit: Title of the axis.
    """
    from plotly.graph_objects import Scatter

    kinds, series = list(changes), list(next(iter(changes.values())))
    traces = []
    for place, name in enumerate(series):
        scores = [changes[kind][name] for kind in kinds]
        offset = (place - (len(series) - 1) / 2) * APART
        traces.append(
            Scatter(
                mode="markers",
                name=name,
                x=[score.value for score in scores],
                y=[row + offset for row in range(len(kinds))],
                text=kinds,
                error_x=bars(scores),
                marker={"color": COLOURS[place], "symbol": MARKS[place], "size": 9},
            )
        )
    rows = {"tickvals": list(range(len(kinds))), "ticktext": kinds, "autorange": "reversed", "automargin": True}
    across = {"title": {"text": unit}, "zeroline": True}
    return chart(traces, xaxis=across, yaxis=rows, height=120 + 70 * len(kinds))


def lines(zeroed: Sequence[Zeroed]) -> dict[str, Any]:
    """Draws Kendall's tau against the number of zeroed features, on a logarithmic axis."""
    counts = [each.count for each in zeroed]
    means = [float(each.random.mean()) for each in zeroed]
    ranges = [
        Interval(mean, float(z.random.min()), float(z.random.max())) for z, mean in zip(zeroed, means, strict=True)
    ]
    traces = [
        line("top, same weights", counts, [each.top for each in zeroed], 0, "solid"),
        line("top, fitted anew", counts, [each.refitted for each in zeroed], 2, "dot"),
        line("random, mean and range", counts, means, 1, "dash").update(error_y=bars(ranges)),
    ]
    across = {"title": {"text": "features zeroed"}, "type": "log", "tickvals": counts}
    return chart(traces, xaxis=across, yaxis={"title": {"text": "Kendall's tau with the order before"}})


def line(name: str, x: list[int], y: list[float], place: int, dash: str = "solid") -> Scatter:
    """A line with marks; `place` selects colour and mark, `dash` is plotly's name of the stroke."""
    from plotly.graph_objects import Scatter

    return Scatter(
        mode="lines+markers",
        name=name,
        x=x,
        y=y,
        line={"color": COLOURS[place], "dash": dash},
        marker={"color": COLOURS[place], "symbol": MARKS[place], "size": 8},
    )


def bars(values: Sequence[Interval]) -> dict[str, Any]:
    """Error bars from the ends of intervals, of length 0 if there is no interval."""
    ends = {"array": [v.high - v.value for v in values], "arrayminus": [v.value - v.low for v in values]}
    finite = {name: [each if np.isfinite(each) else 0.0 for each in lengths] for name, lengths in ends.items()}
    return {"type": "data", "symmetric": False, **finite}
