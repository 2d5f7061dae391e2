"""The plan in tables of text: the same rows go to the terminal, the page and W&B."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from saerl_lightning.plan_page.comparison import Comparison
from saerl_lightning.plan_page.ledger import Ledger
from saerl_lightning.plan_page.planned import PlannedRun


def count(value: float) -> str:
    """A number of things, in groups of three digits."""
    return f"{value:,.0f}"


def number(value: float) -> str:
    """A measured number with about three digits that matter; a dash where there is none."""
    if not np.isfinite(value):
        return "–"
    if round(float(value), 9).is_integer() and abs(value) < 1e15:  # 0.9999999999 is a correlation of 1
        return count(value)
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}" if abs(value) < 10 else f"{value:,.1f}"


def share(part: float, whole: float) -> str:
    """A share in per cent; a dash of nothing."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


def interval(low: float, high: float) -> str:
    """A 95 % interval; a dash where there is none."""
    return f"{number(low)} to {number(high)}" if np.isfinite(low) and np.isfinite(high) else "–"


def with_intervals(metrics: Mapping[str, float]) -> list[tuple[str, float, tuple[float, float]]]:
    """Folds `x`, `x_low` and `x_high` into one entry: name, value, (low, high); NaN where there is no interval."""
    ends = {f"{name}_{end}" for name in metrics for end in ("low", "high")}
    missing = float("nan")
    return [
        (name, value, (metrics.get(f"{name}_low", missing), metrics.get(f"{name}_high", missing)))
        for name, value in metrics.items()
        if name not in ends
    ]


PRINTED = 40  # rows of a table in a terminal
EXCERPT = 48  # characters of a prompt there


@dataclass(frozen=True)
class Table:
    """Rows of text under named columns."""

    key: str  # its name in W&B
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1  # columns of words, aligned left; the others are numbers


def summary(run: PlannedRun) -> list[Table]:
    """The tables of a plan: what is served, what is not and why, the clusters, the operations' own numbers."""
    tables = [overview(run), reasons(run.ledger), clusters(run.ledger), scores(run)]
    return [table for table in tables if table.rows]


def overview(run: PlannedRun) -> Table:
    """One line a fact."""
    ledger = run.ledger
    dropped, moved = (ledger.fate == "dropped").sum(), (ledger.mixed_from[ledger.served] >= 0).sum()
    rows = [
        ("digest of the order", ledger.digest),
        ("prompts in the pool", count(len(ledger))),
        ("dropped", f"{count(dropped)} ({share(dropped, len(ledger))})"),
        ("planned", count(ledger.planned.sum())),
        ("batches", f"{count(ledger.batches)} of {ledger.batch_size}"),
        ("left over, in no batch", count((ledger.fate == "not served").sum())),
        ("clusters", _cluster_sizes(ledger)),
        ("difficulty, lowest / median / highest", _range(ledger.difficulty[ledger.planned])),
        ("moved to another batch by mixing", f"{count(moved)} ({share(moved, ledger.served.sum())})"),
        ("slots that are off", ", ".join(run.off()) or "none"),
        *((f"{each.slot} is on, but does nothing", f"{each.name}: {each.idle}") for each in run.idle()),
    ]
    return Table("overview", "The plan", ("", ""), rows, left=2)


def reasons(ledger: Ledger) -> Table:
    """Why prompts are not served, the most frequent reason first."""
    counted = Counter(ledger.reason[ledger.reason != ""].tolist()).most_common()
    rows = [(reason, count(prompts), share(prompts, len(ledger))) for reason, prompts in counted]
    return Table("not_served", "Not served", ("reason", "prompts", "of the pool"), rows)


def clusters(ledger: Ledger) -> Table:
    """The clusters in their order, over planned prompts."""
    rows = []
    for cluster in np.unique(ledger.cluster[ledger.planned & (ledger.cluster >= 0)]):
        members = ledger.planned & (ledger.cluster == cluster)
        topic, most = Counter(ledger.topic[members].tolist()).most_common(1)[0]
        mix = f"{topic} {share(most, members.sum())}" if topic else "–"
        batches = len(np.unique(ledger.batch[members & ledger.served]))
        rows.append((str(cluster), mix, count(members.sum()), count(batches), _mean(ledger.difficulty[members])))
    return Table(
        "clusters", "Clusters", ("cluster", "largest topic", "prompts", "in batches", "mean difficulty"), rows, left=2
    )


def scores(run: PlannedRun) -> Table:
    """What the operations say of themselves."""
    rows = [
        (operation.slot, operation.name, name, number(value), interval(*ends))
        for operation in run.operations
        for name, value, ends in with_intervals(operation.metrics)
    ]
    columns = ("slot", "operation", "number", "value", "95 % interval")
    return Table("operations", "What the operations report", columns, rows, left=3)


def comparison(compared: Comparison) -> list[Table]:
    """How far this plan is from the other one."""
    facts = [
        ("digest, other and this", " / ".join(compared.digests)),
        ("batches, other and this", " / ".join(map(count, compared.batches))),
        ("fates that differ", f"{count(compared.changed)} of {count(compared.prompts)}"),
        ("served by both", count(compared.served)),
        ("of them at the same step", f"{count(compared.same_step)} ({share(compared.same_step, compared.served)})"),
        ("Kendall's tau of the order", number(compared.kendall)),
        ("adjusted Rand index of the clusters", number(compared.clusters)),
        ("Spearman correlation of difficulty", number(compared.difficulty)),
        ("Spearman correlation of quality", number(compared.quality)),
    ]
    fates = [(*names, count(prompts)) for names, prompts in sorted(compared.fates.items()) if names[0] != names[1]]
    movers = [(m.uid, m.topic, m.text, count(m.before + 1), count(m.after + 1)) for m in compared.movers]
    tables = [
        Table("against", "Against the other plan", ("", ""), facts, left=2),
        Table("fates", "Fates that differ", ("other plan", "this plan", "prompts"), fates, left=2),
        Table("movers", "Prompts that move most", ("uid", "topic", "text", "other step", "this step"), movers, left=3),
    ]
    return [table for table in tables if table.rows]


def show(tables: Sequence[Table], console: Console) -> None:
    """Prints tables; a long one ends by saying how many rows are left out."""
    for table in tables:
        printed = RichTable(title=table.title, title_justify="left", show_header=any(table.columns))
        for position, column in enumerate(table.columns):
            words = position < table.left
            overflow, most = ("ellipsis", EXCERPT) if column == "text" else ("fold", None)
            justify = "left" if words else "right"
            printed.add_column(column, justify=justify, overflow=overflow, max_width=most, no_wrap=most is not None)
        for row in table.rows[:PRINTED]:
            printed.add_row(*map(Text, row))  # as it is: a prompt may hold square brackets, rich's own markup
        console.print(printed)
        if len(table.rows) > PRINTED:
            console.print(f"… and {count(len(table.rows) - PRINTED)} more")


def _cluster_sizes(ledger: Ledger) -> str:
    sizes = np.unique(ledger.cluster[ledger.planned & (ledger.cluster >= 0)], return_counts=True)[1]
    if not len(sizes):
        return "none"
    return f"{len(sizes)}, of {count(sizes.min())} to {count(sizes.max())} prompts (median {count(float(np.median(sizes)))})"


def _range(values: np.ndarray) -> str:
    rated = values[np.isfinite(values)]
    return " / ".join(map(number, np.percentile(rated, [0, 50, 100]).tolist())) if len(rated) else "not rated"


def _mean(values: np.ndarray) -> str:
    rated = values[np.isfinite(values)]
    return number(rated.mean()) if len(rated) else "–"
