"""Reads the curves and the costs of a run from its metrics.csv files.

A run that was killed and resumed has one file for each attempt (`csv/version_0`, `version_1`, …). If a step was done
twice, the later row counts, so costs are those of an uninterrupted run. Tokens are summed over processes; seconds are
their mean.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path

from saerl_lightning.errors import InputError

PHASES = {
    "generate": "generate_s",
    "forward": "train_s",
    "backward": "train_s",
    "optimizer": "train_s",
    "plan": "plan_s",
}
Row = dict[str, float]


def logged_steps(folder: Path) -> dict[int, Row]:
    """Reads the metrics of each optimiser step, by the number of steps done (from 1); validations are left out."""
    rows: dict[int, Row] = {}
    for _, row in _rows(folder):
        if "loss" in row:
            rows[int(row["step"]) + 1] = row
    return dict(sorted(rows.items()))


def curve(folder: Path, metric: str) -> list[tuple[int, float]]:
    """Reads a logged metric by optimiser steps done; the validation before the first step is at 0."""
    return curves(folder, lambda name: name == metric).get(metric, [])


def curves(folder: Path, wanted: Callable[[str], bool]) -> dict[str, list[tuple[int, float]]]:
    """Reads every logged metric whose name passes `wanted`, by optimiser steps done; see `curve`.

    Lightning logs a step under its index from 0, and the validation before the first step under 0 too.
    """
    points: dict[str, dict[int, float]] = {}
    trained: set[int] = set()  # attempts in which a step was done
    for attempt, row in _rows(folder):
        if "loss" in row:
            trained.add(attempt)
        before_any = row["step"] == 0 and attempt not in trained
        for name in filter(wanted, row):
            points.setdefault(name, {})[0 if before_any else int(row["step"]) + 1] = row[name]
    return {name: sorted(own.items()) for name, own in points.items()}


def step_costs(row: Mapping[str, float]) -> Row:
    """Costs of one step: seconds by phase, sampled tokens, tokens that were used for training, and groups with variance."""
    seconds = {name.removeprefix("time/"): value for name, value in row.items() if name.startswith("time/")}
    costs = {"generate_s": 0.0, "train_s": 0.0, "other_s": 0.0}
    for phase, value in seconds.items():
        name = PHASES.get(phase, "other_s")
        costs[name] = costs.get(name, 0.0) + value
    training = max(seconds.get("forward", 0.0) + seconds.get("backward", 0.0), 1e-9)  # as `throughput_metrics` divides
    costs["sampled_tokens"] = row.get("throughput/sampled_tokens_per_s", 0.0) * max(seconds.get("generate", 0.0), 1e-9)
    costs["trained_tokens"] = row.get("throughput/trained_tokens_per_s", 0.0) * training
    if "groups/effective" in row:
        costs["effective_groups"] = row["groups/effective"]
    return costs


def run_costs(folder: Path) -> Row:
    """Costs of a run summed over its steps, and the number of steps."""
    steps = logged_steps(folder)
    total: Row = {"steps": float(len(steps))}
    for row in steps.values():
        for name, value in step_costs(row).items():
            total[name] = total.get(name, 0.0) + value
    return {name: round(value, 3) for name, value in total.items()}


def cumulative(folder: Path, cost: str) -> list[tuple[int, float]]:
    """Sums a cost up to each optimiser step; `cost` is a name of `step_costs`, or "seconds" for all phases."""
    spent, points = 0.0, []
    for step, row in logged_steps(folder).items():
        costs = step_costs(row)
        seconds = sum(value for name, value in costs.items() if name.endswith("_s"))
        spent += seconds if cost == "seconds" else costs[cost]
        points.append((step, spent))
    return points


def steps_done(folder: Path) -> tuple[int, float]:
    """Number of optimiser steps that a run logged, and the tokens it sampled."""
    steps = logged_steps(folder)
    return max(steps, default=0), sum(step_costs(row)["sampled_tokens"] for row in steps.values())


def _rows(folder: Path) -> list[tuple[int, Row]]:
    """Reads the rows of all attempts in order, with the attempt's number; empty cells are left out.

    Raises:
        InputError: if a file is damaged.
    """
    found = []
    for attempt, path in enumerate(sorted(folder.glob("csv/version_*/metrics.csv"), key=_version)):
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(
                f"'{path}' is damaged ({error}); move the run's folder away, and it is made again"
            ) from error
        for row in rows:
            numbers = {name: _number(value) for name, value in row.items() if name and isinstance(value, str)}
            kept = {name: value for name, value in numbers.items() if value is not None}
            if "step" in kept:
                found.append((attempt, kept))
    return found


def _version(path: Path) -> int:
    number = path.parent.name.removeprefix("version_")
    return int(number) if number.isdigit() else 0


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
