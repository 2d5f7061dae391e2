"""Markdown of what `signals.py` found: one table a task, and who wins by how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from signal_tasks import CURVE, Contest, Finding, Task

from saerl_lightning.data.scores import Statistic, bootstrap
from saerl_lightning.prompts.corruption import KINDS

Found = Mapping[str, Finding]  # by signal

SUBJECT = "SAE"
NULLS = ("shuffled", "random")  # not rivals: they know nothing
LEFT = ["given_characters", "given_length", "given_both"]
TABLES: dict[str, tuple[str, dict[str, str]]] = {  # task: heading, and column -> its head
    "topic": ("Topic: accuracy of a linear classifier, 5-fold", {"accuracy": "accuracy", "majority": "majority class"}),
    "difficulty elastic net": (
        "Difficulty, 5-fold, by the method's probe (elastic net)",
        {"r2": "R²", "pearson": "Pearson", "spearman": "Spearman"}
        | dict(zip(LEFT, ("… given characters", "… given six length measures", "… and subject"), strict=True)),
    ),
    "difficulty ridge": (
        "Difficulty, 5-fold, by ridge",
        {"r2": "R²", "pearson": "Pearson", "spearman": "Spearman"}
        | dict(zip(LEFT, ("… given characters", "… given six length measures", "… and subject"), strict=True)),
    ),
    "transfer": (
        "Difficulty of a subject that the probe never saw (ridge; leave one subject out, predictions pooled)",
        {"r2": "R²", "pearson": "Pearson", "spearman": "Spearman", "within": "mean Spearman within a subject"},
    ),
    "curve": (
        "Learning curve: Spearman on held-out prompts by number of labels (ridge; mean ± sd over draws)",
        {f"{n}": f"n = {n}" for n in CURVE},
    ),
    "clusters": (
        "Spherical k-means against subjects (mean over 3 seeds)",
        {f"as_many_{s}": f"{s.upper()}, K = subjects" for s in ("nmi", "ami", "ari")}
        | {f"sixteen_{s}": f"{s.upper()}, K = 16" for s in ("nmi", "ami", "ari")},
    ),
    "quality": (
        "Quality: intact or corrupted (ridge, 5-fold)",
        {"auc": "AUC", "pearson": "Pearson", "auc_left": "AUC given length", "pearson_left": "Pearson given length"}
        | {f"auc_{kind}": f"AUC, {kind.replace('_', ' ')}" for kind in KINDS},
    ),
}


def table(task: Task, found: Found) -> str:
    """One line a signal; columns that no signal has are left out."""
    heading, columns = TABLES[task.name]
    shown = {key: head for key, head in columns.items() if any(key in f.numbers for f in found.values())}
    lines = [
        f"### {heading}",
        "",
        "| signal | " + " | ".join(shown.values()) + " |",
        "| --- |" + " ---: |" * len(shown),
    ]
    for signal, finding in found.items():
        lines.append(f"| {signal} | " + " | ".join(cell(finding.numbers, key) for key in shown) + " |")
    return "\n".join(lines)


def cell(numbers: Mapping[str, float], key: str) -> str:
    """A value with its interval or its deviation, where it has one."""
    if key not in numbers:
        return "–"
    value = f"{numbers[key]:.3f}"
    if f"{key}_sd" in numbers:
        return f"{value} ± {numbers[f'{key}_sd']:.3f}"
    return f"{value} [{numbers[f'{key}_low']:.3f}, {numbers[f'{key}_high']:.3f}]" if f"{key}_low" in numbers else value


def verdicts(task: Task, found: Found) -> list[str]:
    """One line a contest: the SAE less the best of its rivals, with the interval of the paired difference."""
    rivals = [signal for signal in found if signal != SUBJECT and signal not in NULLS]
    if SUBJECT not in found or not rivals:
        return []
    return [verdict(name, contest, found, rivals) for name, contest in task.contests().items()]


def verdict(name: str, contest: Contest, found: Found, rivals: Sequence[str]) -> str:
    """Both signals are measured on the same draws of prompts; the rival is the best by value, which favours it."""
    statistics = {signal: contest(found[signal].predictions) for signal in (SUBJECT, *rivals)}
    values = {signal: value(statistic, len(found[signal].predictions)) for signal, statistic in statistics.items()}
    best = max(rivals, key=values.__getitem__)
    ours, theirs = statistics[SUBJECT], statistics[best]
    n = len(found[SUBJECT].predictions)
    difference = bootstrap({"difference": lambda counts: ours(counts) - theirs(counts)}, n)["difference"]
    says = "the SAE wins" if difference.low > 0 else "**the SAE loses**" if difference.high < 0 else "**undecided**"
    return (
        f"- {name}: {says}. SAE {values[SUBJECT]:.3f}, its best rival ({best}) {values[best]:.3f}; "
        f"difference {difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
    )


def value(statistic: Statistic, n: int) -> float:
    """The statistic of the prompts as they are, every one once."""
    return float(statistic(np.ones((1, n), dtype=np.int64))[0])
