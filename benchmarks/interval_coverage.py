"""How often the study's 95 % intervals hold the truth: `benchmarks/interval_coverage.py`.

Synthetic studies with a known truth: 5 seeds, sets of 100, 150 and 200 questions, 8 samples a question. The chance of a
right answer is logistic(set + question + seed + arm's effect + seed x arm + question x arm + all three), normal effects;
question and seed are shared by the arms. The truth is the mean over the questions and seeds that there could be, integrated
exactly. Worlds differ in what is luck: training, the questions, single answers, or all. Coverage is counted with a real
effect; Holm's error rate with 4 arms that differ from the baseline in nothing. The rivals, on fewer studies, are plain
percentiles of the crossed bootstrap, and a t interval over the seeds' macro differences that takes the questions as given.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.special import expit

from saerl_lightning.study.accuracy_intervals import Accuracies, accuracy_difference, resampled_differences
from saerl_lightning.study.statistics import holm, mean_estimate

SEEDS, SAMPLES, ARMS, DRAWS = 5, 8, 4, 1000
SETS = {"hard": (100, -1.5), "middle": (150, 0.0), "easy": (200, 1.0)}  # questions, mean logit
EFFECT = 0.2  # of an arm, in logits: about 3 points
COVER, REJECT = (0.93, 0.97), 0.05  # goals

Interval = Callable[[Accuracies, Accuracies], tuple[float, float]]


@dataclass(frozen=True)
class World:
    """Standard deviations of the effects, in logits."""

    seed_arm: float  # training's luck in one arm
    question_arm: float = 0.0  # questions that suit an arm
    answer: float = 0.0  # one seed's run on one question
    question: float = 1.5
    seed: float = 0.2

    @property
    def spread(self) -> float:
        """Of all effects together."""
        return float(np.sqrt(np.sum(np.square([*vars(self).values()]))))

    def truth(self, effect: float) -> float:
        """Macro accuracy an arm gains by its effect, over all questions and seeds there could be."""
        at, weight = np.polynomial.hermite_e.hermegauss(101)
        gains = [expit(mean + effect + self.spread * at) - expit(mean + self.spread * at) for _, mean in SETS.values()]
        return float(np.mean(gains, 0) @ weight / weight.sum())

    def study(self, effects: list[float], rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
        """Draws one study: of each arm and set the accuracies (seeds, questions)."""
        shared = rng.normal(0, self.seed, (SEEDS, 1))
        training = rng.normal(0, self.seed_arm, (len(effects), SEEDS, 1))
        arms: list[dict[str, np.ndarray]] = [{} for _ in effects]
        for name, (count, mean) in SETS.items():
            base = mean + shared + rng.normal(0, self.question, count)  # (S, Q)
            for arm, effect, luck in zip(arms, effects, training, strict=True):
                suits = rng.normal(0, self.question_arm, count)
                logit = base + effect + luck + suits + rng.normal(0, self.answer, (SEEDS, count))
                arm[name] = rng.binomial(SAMPLES, expit(logit)) / SAMPLES
        return arms


WORLDS = {
    "training's luck": World(seed_arm=0.25),
    "all of them": World(seed_arm=0.10, question_arm=0.5, answer=0.3),
    "the questions": World(seed_arm=0.02, question_arm=0.8, answer=0.3),
    "single answers": World(seed_arm=0.02),
}


def ours(arm: Accuracies, baseline: Accuracies) -> tuple[float, float]:
    estimate, _ = accuracy_difference(arm, baseline)
    return estimate.low, estimate.high


def percentiles(arm: Accuracies, baseline: Accuracies) -> tuple[float, float]:
    low, high = np.quantile(resampled_differences(arm, baseline, DRAWS), [0.025, 0.975])
    return float(low), float(high)


def seeds_only(arm: Accuracies, baseline: Accuracies) -> tuple[float, float]:
    macro = np.mean([(arm[name] - baseline[name]).mean(1) for name in arm], 0)  # (S,)
    estimate = mean_estimate(macro.tolist())
    return estimate.low, estimate.high


def coverage(world: World, interval: Interval, studies: int, seed: int) -> tuple[float, float]:
    """Share of intervals that hold the truth, and their median length."""
    rng = np.random.default_rng(seed)
    ends = np.array([interval(*world.study([EFFECT, 0.0], rng)) for _ in range(studies)])  # (studies, 2)
    truth = world.truth(EFFECT)
    return float(np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1]))), float(np.median(np.diff(ends)))


def false_rejections(world: World, studies: int, seed: int) -> float:
    """Share of studies without any effect in which Holm rejects at least once."""
    rng = np.random.default_rng(seed)
    rejected = 0
    for _ in range(studies):
        baseline, *arms = world.study([0.0] * (ARMS + 1), rng)
        p = {str(i): accuracy_difference(arm, baseline)[0].p for i, arm in enumerate(arms)}
        rejected += any(result.rejected for result in holm(p).values())
    return rejected / studies


def share(value: float, studies: int) -> str:
    return f"{100 * value:.1f} ± {100 * np.sqrt(value * (1 - value) / studies):.1f} %"


def report(studies: int, rivals: int, seed: int) -> tuple[Table, bool]:
    """The table, and whether every world reached the goals."""
    table = Table(
        title=f"95 % intervals of {SEEDS} seeds, {studies} studies ({rivals} of the rivals); ± one standard error"
    )
    columns = (
        "world",
        "covers",
        "points",
        f"null rejects ({ARMS} arms)",
        "percentiles",
        "points",
        "seeds only",
        "points",
    )
    for column in columns:
        table.add_column(column)
    reached = True
    for number, (name, world) in enumerate(WORLDS.items()):
        covers, length = coverage(world, ours, studies, seed + number)
        rejects = false_rejections(world, studies, seed + 100 + number)
        plain, plain_length = coverage(world, percentiles, rivals, seed + number)
        alone, alone_length = coverage(world, seeds_only, studies, seed + number)
        # A share is held against its goal up to two standard errors of its own.
        slack = 2 * np.sqrt(0.05 * 0.95 / studies)
        reached &= COVER[0] - slack <= covers <= COVER[1] + slack and rejects <= REJECT + slack
        cells = [share(covers, studies), f"{100 * length:.1f}", share(rejects, studies)]
        cells += [share(plain, rivals), f"{100 * plain_length:.1f}", share(alone, studies), f"{100 * alone_length:.1f}"]
        table.add_row(name, *cells)
    return table, reached


def main() -> None:
    parser = argparse.ArgumentParser(description="Counts how often 95 % intervals of synthetic studies hold the truth.")
    parser.add_argument("--studies", type=int, default=6000)
    parser.add_argument("--rivals", type=int, default=200, help="studies of the drawn bootstrap, which is slow")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.perf_counter()
    table, reached = report(options.studies, options.rivals, options.seed)
    console = Console(width=140)
    console.print(table)
    goal = f"goal: covers {100 * COVER[0]:.0f} to {100 * COVER[1]:.0f} %, null rejects at most {100 * REJECT:.0f} %"
    console.print(
        f"{goal}: {'reached within two standard errors' if reached else 'MISSED'}; {time.perf_counter() - start:.0f} s"
    )
    raise SystemExit(0 if reached else 1)


if __name__ == "__main__":
    main()
