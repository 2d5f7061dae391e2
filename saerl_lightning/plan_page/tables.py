"""The plan as tables of text, which the terminal, the page and W&B show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from saerl_lightning.plan_page.comparison import PlanComparison
from saerl_lightning.plan_page.ledger import Ledger
from saerl_lightning.plan_page.planned import MadePlan


def count(value: float) -> str:
    """Formats a number of things, with separated thousands."""
    return f"{value:,.0f}"


def number(value: float) -> str:
    """Formats a measured number with about three significant digits; a dash if it is not finite."""
    if not np.isfinite(value):
        return "–"
    # Rounded first, because rounding errors would show 0.9999999999 as 1.000 and not as 1.
    if round(float(value), 9).is_integer() and abs(value) < 1e15:
        return count(value)
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}" if abs(value) < 10 else f"{value:,.1f}"


def share(part: float, whole: float) -> str:
    """Formats a share in per cent; a dash if the whole is 0."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


def interval(low: float, high: float) -> str:
    """Formats a 95 % interval; a dash if there is none."""
    return f"{number(low)} to {number(high)}" if np.isfinite(low) and np.isfinite(high) else "–"


def with_intervals(metrics: Mapping[str, float]) -> list[tuple[str, float, tuple[float, float]]]:
    """Combines `x`, `x_low` and `x_high` into one entry: name, value, (low, high); NaN without an interval."""
    ends = {f"{name}_{end}" for name in metrics for end in ("low", "high")}
    missing = float("nan")
    return [
        (name, value, (metrics.get(f"{name}_low", missing), metrics.get(f"{name}_high", missing)))
        for name, value in metrics.items()
        if name not in ends
    ]


PRINTED = 40  # largest number of rows printed per table
EXCERPT = 48  # largest number of printed characters of a prompt


@dataclass(frozen=True)
class Table:
    """A table with named columns and rows of text."""

    key: str  # name in W&B
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1  # number of left-aligned columns (text); the others are numbers


def summary(run: MadePlan) -> list[Table]:
    """Makes the tables of a plan: overview, reasons for drops, clusters, and the operations' numbers."""
    tables = [overview(run), reasons(run.ledger), clusters(run.ledger), scores(run)]
    return [table for table in tables if table.rows]


def overview(run: MadePlan) -> Table:
    """Makes the overview table, one fact per row."""
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
        *((f"{each.slot} may act at random", f"{each.name}: {each.doubt}") for each in run.doubtful()),
    ]
    return Table("overview", "The plan", ("", ""), rows, left=2)


def reasons(ledger: Ledger) -> Table:
    """Lists the reasons why prompts are not served, the most frequent first."""
    counted = Counter(ledger.reason[ledger.reason != ""].tolist()).most_common()
    rows = [(reason, count(prompts), share(prompts, len(ledger))) for reason, prompts in counted]
    return Table("not_served", "Not served", ("reason", "prompts", "of the pool"), rows)


def clusters(ledger: Ledger) -> Table:
    """Lists the clusters in their order, counted over planned prompts."""
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


def scores(run: MadePlan) -> Table:
    """Lists the numbers that the operations report."""
    rows = [
        (operation.slot, operation.name, name, number(value), interval(*ends))
        for operation in run.operations
        for name, value, ends in with_intervals(operation.metrics)
    ]
    columns = ("slot", "operation", "number", "value", "95 % interval")
    return Table("operations", "What the operations report", columns, rows, left=3)


def comparison(compared: PlanComparison) -> list[Table]:
    """Makes the tables that compare a plan with another one."""
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
    """Prints tables. If a table is long, prints the number of rows left out."""
    for table in tables:
        printed = RichTable(title=table.title, title_justify="left", show_header=any(table.columns))
        for position, column in enumerate(table.columns):
            words = position < table.left
            overflow, most = ("ellipsis", EXCERPT) if column == "text" else ("fold", None)
            justify = "left" if words else "right"
            printed.add_column(column, justify=justify, overflow=overflow, max_width=most, no_wrap=most is not None)
        for row in table.rows[:PRINTED]:
            # As Text objects, because square brackets in a prompt would be read as rich's markup.
            printed.add_row(*map(Text, row))
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
