"""Runs of several arms over several seeds, each in a process of its own, a few at a time."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from saerl_lightning.errors import RunStopped
from saerl_lightning.study.plan import PROGRAM
from saerl_lightning.study.processes import Executor, SubprocessExecutor, tail


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
        executor = SubprocessExecutor()
        with ThreadPoolExecutor(jobs) as pool:
            finished = pool.map(lambda each: self._train(executor, *each), wanted)
            try:
                runs = list(tqdm(finished, total=len(wanted), desc="runs", unit="run"))
            except BaseException:
                executor.stop()  # leaving the pool waits for what it runs
                raise
        return {arm: [run for (name, _), run in zip(wanted, runs, strict=True) if name == arm] for arm in self.flags}

    def _train(self, executor: Executor, arm: str, seed: int) -> Trained:
        folder = self.root / arm.lower() / f"seed-{seed}"
        own = [f"--run_dir={folder}", f"--seed_everything={seed}", f"--data.shuffle_seed={seed}"]
        command = [*PROGRAM, "fit", *self.flags[arm], *own, f"--model.sampling.seed={seed}"]
        log = folder.with_suffix(".log")
        if code := executor.run(command, {}, log):
            raise RunStopped(f"the run {arm}, seed {seed}, ended with {code}:\n{tail(log)}")
        return Trained(seed, folder)
