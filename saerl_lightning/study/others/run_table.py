"""RunTable: the runs of a CSV file (method, seed, one column a benchmark), divided into settings that are comparable."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np

from saerl_lightning.errors import InputError, shown

SETTINGS = ("campaign", "model", "dataset", "data", "task", "regime", "steps")  # columns that usually divide runs
IDENTIFIERS = ("id", "run", "run_id")  # columns that are no scores even if they hold numbers
NAMED = 12  # names that a message lists


Row = dict[str, str]


@dataclass(frozen=True)
class Setting:
    """Runs that differ in method and seed only."""

    name: str
    baseline: str
    runs: Mapping[str, np.ndarray]  # scores by method, baseline included, (S, B)


@dataclass(frozen=True)
class RunTable:
    """Runs of a file, by setting.

    Args:
        benchmarks: Names of the B benchmarks, in the order of the scores' columns.
        settings: Settings in which a baseline and another method were run.
        left_out: Sentences about the runs that nothing can be said of.
    """

    benchmarks: Sequence[str]
    settings: Sequence[Setting]
    left_out: Sequence[str] = ()


def read_run_table(
    file: Path,
    baselines: Sequence[str],
    within: Sequence[str] | None = None,
    benchmarks: Sequence[str] | None = None,
    method: str = "method",
    seed: str = "seed",
) -> RunTable:
    """Reads a table of runs, one a row.

    Args:
        file: CSV file with a header.
        baselines: Methods that others are held against; the first of them that a setting has is its baseline.
        within: Columns that divide the runs into settings; null takes those of `SETTINGS` that the file has.
        benchmarks: Columns of scores; null takes all columns of numbers that are not named otherwise.
        method: Column of the methods.
        seed: Column of the seeds.

    Raises:
        InputError: if the file can't be read, a column is missing, a score is no number, a run stands there twice, or no
            setting has a baseline and another method with two runs.
    """
    rows = _read(file)
    given = [method, seed, *(within or ()), *(benchmarks or ())]
    if missing := [name for name in given if name not in rows[0]]:
        raise InputError(
            f"'{file}' has no column {shown(missing[0])}; its columns are {_listed(rows[0])}: name others by --method, "
            "--seed, --within or --benchmarks"
        )
    within = [name for name in SETTINGS if name in rows[0]] if within is None else list(within)
    if benchmarks is None:
        others = {method, seed, *within, *IDENTIFIERS}
        benchmarks = [
            name for name in rows[0] if name not in others and any(_number(row[name]) is not None for row in rows)
        ]
    if len(benchmarks) < 2:
        raise InputError(
            f"'{file}' has {len(benchmarks)} benchmarks ({_listed(benchmarks) or 'no other column of numbers'}); at least "
            "two are needed, a column each"
        )
    grouped = _grouped(file, rows, [*within, method, seed], benchmarks)
    settings, left_out = [], []
    for place, runs in grouped.items():
        name = ", ".join(filter(None, place)) or "all runs"
        baseline = next((each for each in baselines if each in runs), None)
        if baseline is None or len(runs) < 2 or max(map(len, runs.values())) < 2:
            left_out.append(f"{name}: {_reason(runs, baseline, baselines)}")
        else:
            settings.append(Setting(name, baseline, {each: np.array(scores) for each, scores in runs.items()}))
    if not settings:
        raise InputError(f"'{file}' has nothing to compare; {left_out[0]}")
    return RunTable(benchmarks, settings, left_out)


def _read(file: Path) -> list[Row]:
    """Reads all cells as texts; at least one row."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened, strict=True)
            rows = list(reader)
        if torn := [number for number, row in enumerate(rows, 2) if None in row or None in row.values()]:
            raise ValueError(f"row {torn[0]} has another number of cells than the header")
        if not rows:
            raise ValueError("it has no runs")
    except (OSError, ValueError, csv.Error) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"'{file}' can't be read ({said}); give a CSV file in UTF-8 with a header and a run a row"
        ) from error
    return rows


def _grouped(
    file: Path, rows: Sequence[Row], key: Sequence[str], benchmarks: Sequence[str]
) -> dict[tuple[str, ...], dict[str, list[list[float]]]]:
    """Scores of each run, by setting and method; `key` names the columns of the setting, the method and the seed."""
    found: dict[tuple[str, ...], dict[str, list[list[float]]]] = {}
    seen: set[tuple[str, ...]] = set()
    for number, row in enumerate(rows, 2):
        *setting, method, _ = run = tuple(row[name] for name in key)
        if run in seen:
            raise InputError(
                f"'{file}' row {number}: the second run of {', '.join(filter(None, run))}; name the columns in which "
                f"such runs differ by --within (now {_listed(key[:-2]) or 'none'})"
            )
        seen.add(run)
        scores = [_number(row[name]) for name in benchmarks]
        if None in scores:
            name = benchmarks[scores.index(None)]
            raise InputError(
                f"'{file}' row {number}, column {name!r}: {row[name]!r} is no score; give every run a number there, or name "
                "the columns to read by --benchmarks"
            )
        found.setdefault(tuple(setting), {}).setdefault(method, []).append(
            [each for each in scores if each is not None]
        )
    return found


def _number(cell: str) -> float | None:
    """The finite number in a cell; None if there is none."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if isfinite(value) else None


def _reason(runs: Mapping[str, object], baseline: str | None, baselines: Sequence[str]) -> str:
    if baseline is None:
        return f"no run of {' or '.join(baselines)}, but of {_listed(runs)}; name the baseline by --baseline"
    return "the baseline alone" if len(runs) < 2 else "one seed of every method"


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:NAMED]) + (f" and {len(listed) - NAMED} more" if len(listed) > NAMED else "")
