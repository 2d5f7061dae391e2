"""Processor seconds that online operations add to a step, as the pool grows: `benchmarks/online_overhead.py`.

A step observes 64 groups of 8 and arranges what is left of the epoch, as a run does before every batch: the whole path of
`data.revision`, without a policy. Features are synthetic: 64 standard normal columns, of which 3 say something. The goal is
1 % of a step at 100,000 prompts, so the last column is the shortest step for which that holds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from statistics import median

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.special import expit

from saerl_lightning.data.callback import Online
from saerl_lightning.data.revision import revise
from saerl_lightning.online.beliefs.feature_posterior import FeaturePosterior
from saerl_lightning.online.beliefs.prompt_beta import PromptBeta
from saerl_lightning.online.rules.admit import Admit
from saerl_lightning.online.rules.easiest_first import EasiestFirst
from saerl_lightning.online.rules.highest_chance import HighestChance
from saerl_lightning.online.rules.nearest import Nearest
from saerl_lightning.online.selection import Selection
from saerl_lightning.plan import SamplePlan
from saerl_lightning.records import Outcomes, Prompt

BATCH, GROUP, COLUMNS = 64, 8, 64
SIZES = (10_000, 100_000)
OPERATIONS: dict[str, Callable[[], Online]] = {
    "PromptBeta, Nearest": lambda: Selection(PromptBeta(), Nearest()),
    "FeaturePosterior, HighestChance": lambda: Selection(FeaturePosterior(COLUMNS), HighestChance()),
    "FeaturePosterior, Nearest": lambda: Selection(FeaturePosterior(COLUMNS), Nearest()),
    "FeaturePosterior, Admit": lambda: Selection(FeaturePosterior(COLUMNS), Admit()),
    "FeaturePosterior, EasiestFirst": lambda: Selection(FeaturePosterior(COLUMNS), EasiestFirst()),
}


def outcomes(prompts: list[Prompt], rows: np.ndarray, rates: np.ndarray, random: np.random.Generator) -> Outcomes:
    """Grades a group of each prompt by its true pass rate."""
    right = torch.from_numpy(random.binomial(GROUP, rates[rows]).astype(np.float32))
    count = len(rows)
    return Outcomes(
        [prompts[row].uid for row in rows.tolist()],
        torch.zeros(count, GROUP),
        right,
        torch.full((count,), GROUP),
        (right > 0) & (right < GROUP),
        torch.full((count,), 400 * GROUP),
    )


def seconds_a_step(make: Callable[[], Online], pool: int, steps: int) -> tuple[float, float]:
    """Returns the seconds of the start, and the median of a step's."""
    random = np.random.default_rng(0)
    features = random.standard_normal((pool, COLUMNS))
    rates = expit(features[:, :3].sum(1))
    prompts = [Prompt.asking(f"p{row}", "x") for row in range(pool)]
    operation, plan, handed_out = make(), SamplePlan.sequential(pool, BATCH), np.zeros(0, dtype=np.int64)
    operation.group_size = GROUP
    began = time.process_time()
    plan = operation.apply(plan, prompts, features)
    start, taken = time.process_time() - began, []
    for _ in range(steps):
        began = time.process_time()
        arranged = revise([operation], plan, handed_out)
        used = time.process_time() - began
        rows = arranged.rows[len(handed_out) :][:BATCH]
        graded = outcomes(prompts, rows, rates, random)
        began = time.process_time()
        operation.observe(graded)
        taken.append(used + time.process_time() - began)
        handed_out = np.concatenate([handed_out, rows])
    return start, median(taken)


def measured(sizes: list[int], steps: int) -> Iterator[tuple[str, str, str, str, str]]:
    """Measures every operation at every size."""
    for name, make in OPERATIONS.items():
        for pool in sizes:
            start, step = seconds_a_step(make, pool, steps)
            yield name, f"{pool:,}", f"{start:.2f}", f"{1000 * step:.1f}", f"{100 * step:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="prompts in the pool")
    parser.add_argument("--steps", type=int, default=21, help="steps of which the median is taken")
    given = parser.parse_args()
    table = Table(title=f"what a step of {BATCH} groups costs more; {COLUMNS} columns of features")
    for column in ("belief, rule", "prompts", "start, s", "a step, ms", "1 % of a step of, s"):
        table.add_column(column, justify="left" if column == "belief, rule" else "right", no_wrap=True)
    for row in measured(given.sizes, given.steps):
        table.add_row(*row)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
