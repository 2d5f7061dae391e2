"""What the demo prints: accuracy by task, and both arms' curves, with 95 % intervals over questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.table import Table

from saerl_lightning.evaluation.estimators import bootstrap_interval
from saerl_lightning.tools.demo_arms import Trained

CURVE = "val/demo/avg@8"


@dataclass(frozen=True)
class Measured:
    """Accuracy of a policy on the unseen questions, the same questions in the same order each time."""

    accuracy: Float[np.ndarray, " Q"]  # avg@k of each question
    topics: list[str]  # Q


def print_tasks(before: Measured, after: Mapping[str, Sequence[Measured]], samples: int) -> None:
    """Prints accuracy by task: at the cold start, and of each arm as a mean over its seeds."""
    table = Table(title=f"avg@{samples} on questions asked nowhere else, 95 % bootstrap intervals over questions")
    for column in ("task", "questions", "cold start", *after):
        table.add_column(column, justify="left" if column == "task" else "right")
    topics = np.array(before.topics)
    for task in [*sorted(set(topics)), "all"]:
        rows = np.ones(len(topics), dtype=bool) if task == "all" else topics == task
        cells = [_interval(each[rows]) for each in (before.accuracy, *(_mean(after[arm]) for arm in after))]
        table.add_row(task, str(rows.sum()), *cells)
    Console(width=120).print(table)


def print_arms(
    before: Measured, after: Mapping[str, Sequence[Measured]], runs: Mapping[str, Sequence[Trained]], samples: int
) -> None:
    """Prints each arm's end and the area under its validation curve, seed by seed, and the difference of the arms."""
    table = Table(title="the arms on one budget: the same start, prompts, batch and number of steps")
    for column in (
        "arm",
        "seed",
        f"area under {CURVE}",
        f"its end, avg@{samples}",
        "gain over the cold start (paired)",
    ):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for arm, measured in after.items():
        for run, end in zip(runs[arm], measured, strict=True):
            gain = _interval(end.accuracy - before.accuracy, sign=True)
            table.add_row(arm, str(run.seed), f"{run.area(CURVE):.3f}", f"{end.accuracy.mean():.3f}", gain)
        area = np.mean([run.area(CURVE) for run in runs[arm]])
        gain = _interval(_mean(measured) - before.accuracy, sign=True)
        table.add_row(arm, "mean", f"{area:.3f}", f"{_mean(measured).mean():.3f}", gain, end_section=True)
    Console(width=120).print(table)
    first, *others = after
    for arm in others:
        areas = [b.area(CURVE) - a.area(CURVE) for a, b in zip(runs[first], runs[arm], strict=True)]
        end = _interval(_mean(after[arm]) - _mean(after[first]), sign=True)
        by_seed = ", ".join(f"{each:+.3f}" for each in areas)
        print(
            f"{arm} - {first}: end {end} (over questions, these {len(areas)} seeds); area {np.mean(areas):+.3f} "
            f"(by seed: {by_seed})"
        )


def _mean(measured: Sequence[Measured]) -> Float[np.ndarray, " Q"]:
    return np.mean([each.accuracy for each in measured], axis=0)


def _interval(values: Float[np.ndarray, " Q"], sign: bool = False) -> str:
    low, high = bootstrap_interval(values)
    form = "+.3f" if sign else ".3f"
    return f"{values.mean():{form}} [{low:{form}}, {high:{form}}]"
