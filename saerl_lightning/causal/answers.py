"""Answers of a model under a changed residual stream, and the figure of pass rate against steering strength."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from saerl_lightning.causal.figures import bars, chart
from saerl_lightning.causal.steering import Intervention
from saerl_lightning.data.scores import Interval
from saerl_lightning.plan_page.charts import COLOURS, NOTHING
from saerl_lightning.study.statistics import Estimate, mean_estimate

if TYPE_CHECKING:
    from plotly.graph_objects import Scatter

Kind = Literal["nothing", "probe", "direction", "features", "top out", "random out"]


@dataclass(frozen=True, eq=False)
class Condition:
    """A change of the residual stream under which answers are sampled.

    Args:
        kind: Role of the condition in the test, such as probe or control.
        name: Name of the condition in the table.
        share: Length of the added vector as a share of the stream's mean norm; 0 for removed features.
        features: Number of SAE features that the change uses.
        made_of: Everything that identifies the condition, as values of JSON.
        change: Intervention on the stream; null for no change.
    """

    kind: Kind
    name: str
    share: float
    features: int
    made_of: list[Any]
    change: Intervention | None


@dataclass(frozen=True, eq=False)
class Answers:
    """Measurements under one condition, one number a question.

    Args:
        condition: Condition under which the answers were sampled.
        right: Share of right answers to each question.
        numbered: Share of answers that begin with a number, right or wrong.
        rated: Difficulty that the probe predicts for each question from the changed stream, without intercept, in
            standard deviations of the predictions for the prompts it was fitted on.
    """

    condition: Condition
    right: Float[np.ndarray, " N"]
    numbered: Float[np.ndarray, " N"]
    rated: Float[np.ndarray, " N"]


def steering_figure(answers: Sequence[Answers], none: Answers) -> dict[str, Any]:
    """Draws the probe's direction with intervals, the range of the controls, and each control as a thin line.

    Args:
        answers: Answers under added directions; all other conditions are left out.
        none: Answers without any change.
    """
    added = [each for each in answers if each.condition.share]
    shares = sorted({0.0, *(each.condition.share for each in added)})
    controls: dict[str, dict[float, float]] = {}
    probe: dict[float, Estimate] = {}
    for each in added:
        effect, condition = each.right - none.right, each.condition
        if condition.kind == "probe":
            probe[condition.share] = mean_estimate(effect.tolist())
        else:
            controls.setdefault(condition.name, {0.0: 0.0})[condition.share] = float(effect.mean())
    kinds: dict[str, Kind] = {each.condition.name: each.condition.kind for each in added}
    values = {name: [line[share] for share in shares] for name, line in controls.items()}
    lines = [_control(shares, kinds[name], each) for name, each in values.items()]
    for place, line in enumerate(lines):
        line.showlegend = line.name not in [other.name for other in lines[:place]]
    return chart(
        [_band(shares, list(values.values())), *lines, _probe(shares, probe)],
        height=420,
        xaxis={"title": {"text": "added, share of the stream's mean norm"}, "tickvals": shares},
        yaxis={"title": {"text": "pass rate less that without"}, "zeroline": True, "zerolinecolor": NOTHING},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    )


def _band(shares: list[float], rows: list[list[float]]) -> Scatter:
    from plotly.graph_objects import Scatter

    high, low = np.max(rows, axis=0).tolist(), np.min(rows, axis=0).tolist()
    return Scatter(
        x=[*shares, *shares[::-1]],
        y=[*high, *low[::-1]],
        fill="toself",
        mode="lines",
        fillcolor="rgba(0,114,178,0.16)",
        line={"width": 0},
        name="range of the controls",
        hoverinfo="skip",
    )


def _control(shares: list[float], kind: Kind, values: list[float]) -> Scatter:
    from plotly.graph_objects import Scatter

    name, shade, dash = ("random directions", 0, "dash") if kind == "direction" else ("random features", 1, "dot")
    stroke = {"color": COLOURS[shade], "width": 1.2, "dash": dash}
    return Scatter(x=shares, y=values, mode="lines", name=name, legendgroup=kind, line=stroke)


def _probe(shares: list[float], effects: dict[float, Estimate]) -> Scatter:
    from plotly.graph_objects import Scatter

    known = [effects.get(share) for share in shares]  # at share 0 there is no effect to estimate
    values = [Interval(each.value, each.low, each.high) if each else Interval(0.0, 0.0, 0.0) for each in known]
    return Scatter(
        x=shares,
        y=[each.value for each in values],
        mode="lines+markers",
        meta="ink",
        name="the probe's direction, 95 %",
        line={"width": 3},
        marker={"size": 8, "symbol": "diamond"},
        error_y=bars(values),
    )
