"""Runs of several arms over several seeds, each in a process of its own, a few at a time."""

from __future__ import annotations

import csv
import itertools
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from saerl_lightning.errors import RunStopped


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    seed: int
    folder: Path

    @property
    def checkpoint(self) -> Path:
        """Its last weights."""
        return self.folder / "checkpoints" / "last.ckpt"

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """Steps and values of a logged metric."""
        with (self.folder / "csv" / "version_0" / "metrics.csv").open() as file:
            return [(int(row["step"]), float(row[metric])) for row in csv.DictReader(file) if row.get(metric)]

    def area(self, metric: str) -> float:
        """Mean height of a metric's curve over the steps: its area, by trapezoids, over its length."""
        points = self.curve(metric)
        pairs = itertools.pairwise(points)
        return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairs) / (points[-1][0] - points[0][0])


@dataclass(frozen=True)
class Arms:
    """Command lines by arm; each is run once a seed."""

    root: Path
    flags: dict[str, list[str]]

    def train(self, seeds: Iterable[int], jobs: int) -> dict[str, list[Trained]]:
        """Runs every arm on every seed, `jobs` processes at a time.

        Raises:
            RunStopped: if a run failed, with the end of what it wrote.
        """
        wanted = [(arm, seed) for seed in seeds for arm in self.flags]
        with ThreadPoolExecutor(jobs) as pool:
            finished = pool.map(lambda each: self._train(*each), wanted)
            runs = list(tqdm(finished, total=len(wanted), desc="runs", unit="run"))
        return {arm: [run for (name, _), run in zip(wanted, runs, strict=True) if name == arm] for arm in self.flags}

    def _train(self, arm: str, seed: int) -> Trained:
        folder = self.root / arm.lower() / f"seed-{seed}"
        command = [sys.executable, "-m", "saerl_lightning", "fit", *self.flags[arm]]
        own = [f"--run_dir={folder}", f"--seed_everything={seed}", f"--data.shuffle_seed={seed}"]
        threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        ended = subprocess.run(  # noqa: S603 - this package's own command line
            [*command, *own, f"--model.sampling.seed={seed}"],
            env={**os.environ, **threads},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if ended.returncode:
            raise RunStopped(f"the run {arm}, seed {seed}, ended with {ended.returncode}:\n{ended.stdout[-2000:]}")
        return Trained(seed, folder)
