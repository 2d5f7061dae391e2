"""Seconds and memory of the four operations from cached features, as the pool grows: `benchmarks/plan_scale.py`.

Features are synthetic, shaped like pooled SAE rows: 8,192 columns, 100 nonzeros a row, 16 planted groups with columns of
their own, and planted linear labels. 2,000 prompts carry a quality and 5,000 a difficulty, of which the shipped curriculum
takes 1,000; with `--labelled` every prompt has both and both probes learn from all. Each size runs in a process of its own,
with the shipped operations and real `Prompt` objects. Peak memory is that process's, the features and prompts it holds
included; what makes the features is another process. Process seconds stand beside those of the clock: on a shared machine
the clock counts the neighbours too.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.sparse import csr_array

COLUMNS, NONZEROS, GROUPS, OWN = 8192, 100, 16, 150
BATCH = 64
SIZES = (10_000, 100_000, 1_000_000)
GOALS = {100_000: (30.0, 1.5), 1_000_000: (300.0, 8.0)}  # seconds, GB
LABELS = {"quality": 2_000, "difficulty": 5_000}


def write_features(folder: Path, count: int) -> None:
    """Draws rows block by block into files: 150 favoured columns a group, over a long-tailed background."""
    random = np.random.default_rng(0)
    background = (1 / np.arange(1, COLUMNS + 1) ** 0.9)[random.permutation(COLUMNS)].cumsum()
    own = random.permuted(np.tile(np.arange(COLUMNS), (GROUPS, 1)), axis=1)[:, :OWN]
    weights = {name: random.standard_normal(COLUMNS) * (random.random(COLUMNS) < 0.03) for name in LABELS}
    indices = np.lib.format.open_memmap(folder / "indices.npy", "w+", np.int32, (count * NONZEROS,))
    values = np.lib.format.open_memmap(folder / "values.npy", "w+", np.float32, (count * NONZEROS,))
    group = random.integers(GROUPS, size=count)
    labels = {name: np.empty(count) for name in LABELS}
    for start in range(0, count, 10_000):
        rows = slice(start, min(start + 10_000, count))
        columns, numbers = _block(random, background, own[group[rows]])
        block = csr_array(
            (numbers.ravel(), columns.ravel(), np.arange(len(columns) + 1) * NONZEROS), (len(columns), COLUMNS)
        )
        for name, weight in weights.items():
            clean = block @ weight
            labels[name][rows] = clean + 0.5 * clean.std() * random.standard_normal(len(clean))
        indices[start * NONZEROS : rows.stop * NONZEROS] = columns.ravel()
        values[start * NONZEROS : rows.stop * NONZEROS] = numbers.ravel()
    np.savez(folder / "labels.npz", allow_pickle=False, group=group, **labels)


def _block(random: np.random.Generator, background: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns, distinct and sorted, and values of some rows: close to half of each from its group's own."""
    count = len(own)
    drawn = np.searchsorted(background, random.random((count, 3 * NONZEROS)) * background[-1])
    favoured = np.take_along_axis(own, random.integers(OWN, size=(count, NONZEROS // 2)), axis=1)
    columns = np.empty((count, NONZEROS), dtype=np.int32)
    for row, (first, then) in enumerate(zip(favoured, drawn, strict=True)):
        columns[row] = np.sort(_distinct(first, then))
    return columns, random.lognormal(0, 0.5, columns.shape).astype(np.float32)


def _distinct(first: np.ndarray, then: np.ndarray) -> np.ndarray:
    pool = np.concatenate([np.unique(first), then, np.arange(NONZEROS)])
    return pool[np.sort(np.unique(pool, return_index=True)[1])[:NONZEROS]]


def read_features(folder: Path) -> csr_array:
    """Reads the rows into memory."""
    indices, values = np.load(folder / "indices.npy"), np.load(folder / "values.npy")
    count = len(values) // NONZEROS
    return csr_array((values, indices, np.arange(count + 1, dtype=np.int32) * NONZEROS), shape=(count, COLUMNS))


def make_prompts(folder: Path, labelled: bool) -> list[Any]:
    """Real prompts of 20 to 200 characters, with topics and, where they have any, labels."""
    from saerl_lightning.records import Prompt

    random = np.random.default_rng(1)
    with np.load(folder / "labels.npz") as stored:
        columns = {name: stored[name] for name in ("group", *LABELS)}
    count = len(columns["group"])
    known = {
        name: np.isin(np.arange(count), random.permutation(count)[: count if labelled else n])
        for name, n in LABELS.items()
    }
    length = random.integers(20, 200, size=count)
    unlabelled: dict[str, float] = {}
    return [
        Prompt.asking(
            f"p{i}",
            "x" * int(length[i]),
            "1",
            topic=f"t{columns['group'][i]}",
            labels={name: float(columns[name][i]) for name in LABELS if known[name][i]} or unlabelled,
        )
        for i in range(count)
    ]


def measure(folder: Path, labelled: bool) -> dict[str, float]:
    """Applies the four operations and times each."""
    from saerl_lightning.data.clustering import KMeansClusters
    from saerl_lightning.data.curriculum import EasyToHard
    from saerl_lightning.data.filtering import QualityFilter
    from saerl_lightning.data.mixing import TailMixing
    from saerl_lightning.plan import SamplePlan

    prompts, features = make_prompts(folder, labelled), read_features(folder)
    held = peak_gb()
    count = len(prompts)
    operations = {
        "filter": QualityFilter(),
        "cluster": KMeansClusters(),
        "order": EasyToHard(labels=None if labelled else 1000),
        "mix": TailMixing(),
    }
    plan = SamplePlan.sequential(count, BATCH)
    plan = replace(plan, rows=np.random.default_rng(0).permutation(count))
    seconds: dict[str, float] = {}
    begun = time.process_time()
    for name, operation in operations.items():
        plan = _timed(seconds, name, lambda operation=operation, plan=plan: operation.apply(plan, prompts, features))
    _timed(seconds, "ledger", plan.ledger)
    total = {"total": sum(seconds.values()), "process": time.process_time() - begun}
    told = {name: operation.metrics() for name, operation in operations.items()}
    reported = {f"{name}/{key}": value for name, metrics in told.items() for key, value in metrics.items()}
    return {**seconds, **total, "held_gb": held, "peak_gb": peak_gb(), **reported}


def _timed(seconds: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    result = work()
    seconds[name] = time.perf_counter() - start
    return result


def peak_gb() -> float:
    """Largest resident memory of this process so far."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / 1e9


def run_sizes(sizes: list[int], labelled: bool) -> Iterator[tuple[int, dict[str, float]]]:
    """Makes the features of each size in one process and measures in another."""
    for count in sizes:
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
            command = [sys.executable, __file__, "--folder", folder]
            subprocess.run([*command, "--make", str(count)], check=True)
            ended = subprocess.run(
                [*command, *["--labelled"] * labelled], check=True, stdout=subprocess.PIPE, text=True
            )
            yield count, json.loads(ended.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="prompts")
    parser.add_argument("--labelled", action="store_true", help="both probes learn from every prompt")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--make", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.make:
        write_features(given.folder, given.make)
        return
    if given.folder:
        print(json.dumps(measure(given.folder, given.labelled)))
        return
    steps = ["filter", "cluster", "order", "mix", "ledger", "total", "process"]
    table = Table(title=f"seconds of the operations; {COLUMNS:,} columns, {NONZEROS} nonzeros a row")
    for name in ("prompts", *steps, "goal", "held GB", "peak GB", "goal", "labels"):
        table.add_column(name, justify="right", no_wrap=True)
    for count, row in run_sizes(given.sizes, given.labelled):
        seconds, memory = GOALS.get(count, (None, None))
        table.add_row(
            f"{count:,}",
            *(f"{row[step]:.1f}" for step in steps),
            f"<= {seconds:g}" if seconds else "",
            f"{row['held_gb']:.2f}",
            f"{row['peak_gb']:.2f}",
            f"<= {memory:g}" if memory else "",
            f"{row['filter/probe/labels']:,.0f} + {row['order/probe/labels']:,.0f}",
        )
        scores = ("filter/probe/r2", "order/probe/r2", "cluster/clusters", "cluster/nmi", "mix/share")
        print(f"{count:,} prompts: " + ", ".join(f"{key} {row[key]:.3f}" for key in scores), flush=True)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
