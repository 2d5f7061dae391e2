"""The plan as one HTML file, which works from a local disk and loads nothing from other hosts.

All data is escaped, by the template engine in the page and as JSON in script blocks. In addition, a
Content-Security-Policy forbids the browser to load anything, so that a prompt with code could not send data anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from saerl_lightning.plan_page import charts, tables
from saerl_lightning.plan_page.cards import make_cards
from saerl_lightning.plan_page.charts import COLOURS, NOTHING, cluster_colours
from saerl_lightning.plan_page.comparison import PlanComparison
from saerl_lightning.plan_page.frame import asset, plain, plotly_script, script_json, templates
from saerl_lightning.plan_page.ledger import Ledger, excerpt, versions
from saerl_lightning.plan_page.planned import MadePlan
from saerl_lightning.plan_page.projection import map_points, sample
from saerl_lightning.plan_page.tables import count, number, share

MEANINGS = {  # explanations of the operations' numbers; other numbers are shown without one
    "kept": "prompts the filter leaves in the plan",
    "dropped": "prompts the filter takes out",
    "threshold": "rating below which a prompt is dropped",
    "probe/r2": "share of the label's variance predicted on prompts the probe did not learn from; 0 is guessing the mean",
    "probe/pearson": "linear correlation of prediction and label, cross-validated",
    "probe/spearman": "correlation of the two orders, cross-validated: what matters for a curriculum",
    "probe/auc": "chance that the probe rates a good prompt above a bad one; 0.5 is a coin",
    "probe/labels": "labelled prompts the probe learned from",
    "probe/nonzero": "features the probe uses",
    "clusters": "how many clusters",
    "size_min": "prompts of the smallest cluster",
    "size_median": "prompts of the middle cluster",
    "size_max": "prompts of the largest cluster",
    "nmi": "agreement with the data's topics, 0 to 1 (normalised mutual information)",
    "ami": "the same, corrected for chance: random clusters have 0",
    "ari": "agreement with topics by pairs of prompts, corrected for chance",
    "spearman_length": "correlation of the rating with prompt length; near 1, length alone would order alike",
    "share": "share of the served prompts that mixing moved to another batch",
}
SLOT_NOTES = {
    "signals": "No signal source, so there are no feature rows: no map and no strongest features.",
    "filtering": "No filter: only prompts that can't be served are left out.",
    "clustering": "No clusters: batches are cut from one stream, and there are no cluster cards.",
    "curriculum": "No curriculum: nothing rates difficulty, and prompts keep the shuffled order.",
    "mixing": "No mixing: batches stay as they were laid.",
    "online": "Nothing decides while training runs: prompts are served in this order.",
}


def headline(run: MadePlan) -> list[str]:
    """Describes the plan in sentences, without the slots that are off."""
    ledger = run.ledger
    sentences = [_served(ledger), _clusters(ledger), _difficulty(ledger), _mixing(ledger)]
    return [sentence for sentence in sentences if sentence]


def absences(run: MadePlan) -> list[tuple[str, str]]:
    """Returns slots that have no effect on the plan or the page, or may have a random one, with the reason."""
    missing = [(each.slot, f"{each.name} is on, but does nothing: {each.idle}.") for each in run.idle()]
    missing += [(each.slot, f"{each.name}: {each.doubt}.") for each in run.doubtful()]
    missing += [(slot, SLOT_NOTES[slot]) for slot in run.off()]
    if run.signal and run.features is None:
        note = f"{run.signal} is configured, but no operation reads its rows: no map and no strongest features."
        missing.insert(0, ("signals", note))
    if (filtering := run.operation("filtering")) and not np.isfinite(run.ledger.quality).any():
        missing.append(("filtering", f"{filtering.name} rates no quality, so there is no histogram of it."))
    return missing


def _served(ledger: Ledger) -> str:
    pool, dropped, left = len(ledger), int((ledger.fate == "dropped").sum()), int((ledger.fate == "not served").sum())
    lost = f"{count(dropped)} ({share(dropped, pool)}) {_are(dropped)} dropped" if dropped else "none is dropped"
    if left:
        lost += f" and {count(left)} {'fills' if left == 1 else 'fill'} no whole batch"
    served = f"{count(ledger.served.sum())} {_are(ledger.served.sum())} served"
    return (
        f"Of {count(pool)} prompts, {lost}; {served}, in {count(ledger.batches)} steps of {ledger.batch_size} prompts."
    )


def _clusters(ledger: Ledger) -> str:
    sizes = np.unique(ledger.cluster[ledger.planned & (ledger.cluster >= 0)], return_counts=True)[1]
    if not len(sizes):
        return ""
    if len(sizes) == 1:
        return f"One cluster holds all {count(sizes[0])}."
    return f"{count(len(sizes))} clusters hold between {count(sizes.min())} and {count(sizes.max())} prompts each."


def _difficulty(ledger: Ledger) -> str:
    rated = ledger.served & np.isfinite(ledger.difficulty)
    if not rated.any():
        return ""
    tenth = max(1, ledger.batches // 10)
    first = ledger.difficulty[rated & (ledger.batch < tenth)]
    last = ledger.difficulty[rated & (ledger.batch >= ledger.batches - tenth)]
    if not len(first) or not len(last):
        return ""
    return (
        f"The first tenth of training is rated {number(first.mean())} on average, the last tenth {number(last.mean())}."
    )


def _mixing(ledger: Ledger) -> str:
    moved = (ledger.mixed_from[ledger.served] >= 0).sum()
    return f"Mixing moved {share(moved, ledger.served.sum())} of the served prompts to another step." if moved else ""


def _are(things: int) -> str:
    return "is" if things == 1 else "are"


SHOWN = 4  # prompts of a batch
LENGTH = 220


@dataclass(frozen=True)
class BatchExcerpt:
    """Some prompts of one batch."""

    when: str
    step: int  # from 1
    prompts: list[tuple[str, str, float]]  # topic, text, difficulty


def batch_excerpts(run: MadePlan) -> list[BatchExcerpt]:
    """Returns prompts of the first, the middle and the last batch, or of fewer if there are fewer batches."""
    last = run.ledger.batches - 1
    steps = {"At the start": 0, "Half way": last // 2, "At the end": last}
    seen: dict[int, str] = {}
    for when, step in steps.items():
        seen.setdefault(step, when)
    return [BatchExcerpt(when, step + 1, _prompts(run, step)) for step, when in sorted(seen.items())]


def _prompts(run: MadePlan, step: int) -> list[tuple[str, str, float]]:
    rows = run.plan.batches()[step]
    chosen = rows[np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).astype(int)]
    difficulty = run.plan.difficulty
    return [
        (run.prompts[row].topic or "", excerpt(run.prompts[row].text, LENGTH), float(difficulty[row]))
        for row in chosen.tolist()
    ]


POINTS = 6000  # largest number of points on the map
HOVER = 160  # largest number of characters of a prompt on the map


def render(run: MadePlan, arithmetic: Sequence[str] = (), compared: PlanComparison | None = None) -> str:
    """Renders the plan page. Equal plans give equal pages.

    Args:
        run: Plan and the inputs it was made from.
        arithmetic: Lines that say what a training run on the plan will do.
        compared: Comparison with another plan; null leaves the section out.
    """
    cards = make_cards(run)
    names = {card.number: card.title for card in cards}
    figures, points = _figures(run, names), _map(run, names)
    environment = templates()
    environment.globals.update(isfinite=np.isfinite)
    environment.filters.update(number=tables.number, count=tables.count)
    return environment.get_template("page.html").render(
        ledger=run.ledger,
        headline=headline(run),
        absences=absences(run),
        batch_excerpts=batch_excerpts(run),
        cards=cards,
        colours=cluster_colours(list(names)),
        coloured=len(COLOURS),
        most=max((card.size for card in cards), default=1),
        operations=_operations(run),
        reasons=tables.reasons(run.ledger),
        comparison=[] if compared is None else tables.comparison(compared),
        identical=compared is not None and compared.identical,
        arithmetic=arithmetic,
        versions=versions(),
        charts={name: title for name, title in TITLES.items() if name in figures},
        has_map=points is not None,
        shown=len(points["x"]) if points else 0,
        data=script_json({"figures": figures, "map": points, "colours": COLOURS, "nothing": NOTHING}),
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
    """An operation's numbers with explanations."""

    slot: str
    name: str
    idle: str  # why it had no effect; "" if it had one
    doubt: str  # why it may have acted at random; "" if it did not
    rows: list[tuple[str, str, str, str]]  # name, value, interval, explanation


def _operations(run: MadePlan) -> list[OperationTable]:
    return [
        OperationTable(
            each.slot,
            each.name,
            each.idle or "",
            each.doubt,
            [
                (name, tables.number(value), tables.interval(*ends), MEANINGS.get(name, ""))
                for name, value, ends in tables.with_intervals(each.metrics)
            ],
        )
        for each in run.operations
    ]


def _figures(run: MadePlan, names: dict[int, str]) -> dict[str, Any]:
    """Makes the charts for which the plan has data, as plotly's JSON."""
    ledger, figures = run.ledger, {}
    if run.rated:
        figures["difficulty"] = charts.difficulty_by_step(ledger, names)
    if names:
        figures["composition"] = charts.composition(ledger, names)
        figures["sizes"] = charts.cluster_sizes(ledger, names)
    if np.isfinite(ledger.quality).any():
        filtering = run.operation("filtering")
        cut, reason = (filtering.metrics.get("threshold"), filtering.reason) if filtering else (None, "")
        figures["quality"] = charts.quality_histogram(ledger, reason, cut)
    return {name: plain(figure) for name, figure in figures.items()}


def _map(run: MadePlan, names: dict[int, str]) -> dict[str, Any] | None:
    """Returns points for a sample of the pool, and the values to colour them by; None without feature rows."""
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
        "largest": list(names)[: len(COLOURS)],
    }
