"""How often the 95 % intervals of a recovery hold the truth: `benchmarks/recovery_coverage.py`.

Synthetic studies of our sizes: arm, null and oracle over 10 seeds and 280 questions with 8 samples each. The null's accuracy
is .25, the oracle's .02, .05 or .09 above it, and the arm recovers 0, .3, .7 or 1 of that. A run's end varies by .01, .02 or
.03 from seed to seed besides (one standard deviation); half of that variance is shared by the arms of a seed, as they start
alike. Chances are logistic; the truth is the mean over the questions and seeds that there could be, integrated exactly.

"Holds" is Fieller's whole set: two ends, or all that the test does not reject. Studies whose set has no two ends say "not
bounded" in a report; `bounded` is the share of the others, and `held by these` counts them alone. `null rejects` is the share
of reported intervals that leave out 0 where the arm recovers nothing. The rival, on fewer studies, takes percentiles of a
joint bootstrap over seeds and questions.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.optimize import brentq
from scipy.special import expit

from saerl_lightning.study.report.recovery import Trio
from saerl_lightning.study.statistics import ratio_estimate

SEEDS, QUESTIONS, SAMPLES, DRAWS = 10, 280, 8, 500
NULL, QUESTION = 0.25, 1.5  # accuracy of the null; standard deviation of questions, in logits
SUITS, SHARED = (
    0.3,
    0.5,
)  # questions that suit an arm, in logits; share of the seeds' variance that the arms have in common
SPREADS, GAPS, TRUTHS = (0.01, 0.02, 0.03), (0.02, 0.05, 0.09), (0.0, 0.3, 0.7, 1.0)
AT, WEIGHT = np.polynomial.hermite_e.hermegauss(101)
COVER, REJECT = (0.93, 0.97), 0.055  # goals


@dataclass(frozen=True)
class World:
    """A size of the oracle's gain, of the seeds' luck, and the true recovery of an arm."""

    gap: float
    spread: float  # of a run's end from seed to seed
    truth: float

    @property
    def luck(self) -> float:
        """Standard deviation of the seeds in logits."""
        at = _mean_logit(NULL, QUESTION)
        slope = (_accuracy(at + 0.01, QUESTION) - _accuracy(at - 0.01, QUESTION)) / 0.02
        return self.spread / slope

    def logits(self) -> list[float]:
        """Mean logits of arm, null and oracle."""
        spread = float(np.sqrt(QUESTION**2 + SUITS**2 + self.luck**2))
        return [_mean_logit(NULL + share * self.gap, spread) for share in (self.truth, 0.0, 1.0)]

    def study(self, logits: list[float], rng: np.random.Generator) -> Trio:
        """Draws the questions' accuracies of one study."""
        question = rng.normal(0, QUESTION, QUESTIONS)
        seed = rng.normal(0, self.luck * SHARED**0.5, (SEEDS, 1))
        arms = []
        for mean in logits:
            own = rng.normal(0, self.luck * (1 - SHARED) ** 0.5, (SEEDS, 1))
            chance = expit(mean + question + seed + own + rng.normal(0, SUITS, QUESTIONS))
            arms.append(rng.binomial(SAMPLES, chance) / SAMPLES)
        return Trio([arm.mean(1) for arm in arms], [{"set": arm} for arm in arms])


def _accuracy(mean: float, spread: float) -> float:
    return float(expit(mean + spread * AT) @ WEIGHT / WEIGHT.sum())


def _mean_logit(accuracy: float, spread: float) -> float:
    return float(brentq(lambda mean: _accuracy(mean, spread) - accuracy, -10, 10))  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Counts:
    """Shares of the studies of one world."""

    holds: float
    bounded: float
    held: float  # of the bounded ones
    leaves_out: float  # bounded, and 0 is outside


def fieller(world: World, studies: int, seed: int) -> Counts:
    """Counts of the interval that reports show."""
    rng, logits = np.random.default_rng(seed), world.logits()
    turn = np.arctan(world.truth)
    found = []
    for _ in range(studies):
        trio = world.study(logits, rng)
        at, shown = trio.combined(np.cos(turn), np.sin(turn)), ratio_estimate(trio.combined)
        bounded = np.isfinite(shown.high)
        inside = shown.low <= world.truth <= shown.high
        found.append(
            (
                inside if bounded else at.low <= 0 <= at.high,
                bounded,
                inside & bounded,
                bounded & (not shown.low <= 0 <= shown.high),
            )
        )
    holds, bounded, held, out = np.mean(np.array(found, dtype=float), 0)
    return Counts(float(holds), float(bounded), float(held / bounded) if bounded else float("nan"), float(out))


def percentiles(world: World, studies: int, seed: int) -> float:
    """Share of the bootstrap's percentile intervals that hold the truth."""
    rng, logits, held = np.random.default_rng(seed), world.logits(), 0
    for _ in range(studies):
        arm, null, oracle = (each["set"] for each in world.study(logits, rng).questions)
        seeds = rng.multinomial(SEEDS, np.full(SEEDS, 1 / SEEDS), DRAWS) / SEEDS
        questions = rng.multinomial(QUESTIONS, np.full(QUESTIONS, 1 / QUESTIONS), DRAWS) / QUESTIONS
        up, down = (np.sum((seeds @ table) * questions, 1) for table in (arm - null, oracle - null))
        # A draw without any gap is a ratio without bounds.
        with np.errstate(divide="ignore"):
            low, high = np.quantile(up / down, [0.025, 0.975])
        held += low <= world.truth <= high
    return held / studies


def share(value: float, studies: int) -> str:
    return f"{100 * value:.1f} ± {100 * np.sqrt(value * (1 - value) / studies):.1f} %"


def report(studies: int, rivals: int, seed: int) -> tuple[Table, bool]:
    """The table, one row for each gap and spread, and whether every row reached the goals."""
    table = Table(
        title=f"recovery over {SEEDS} seeds and {QUESTIONS} questions, {studies} studies a truth ({rivals} of the rival)"
    )
    for column in (
        "oracle − null",
        "seeds' sd",
        "holds",
        *(f"of {truth:g}" for truth in TRUTHS),
        "bounded",
        "held by these",
        "null rejects",
        "percentiles",
    ):
        table.add_column(column)
    reached, number = True, seed
    for gap in GAPS:
        for spread in SPREADS:
            found, rival = [], []
            for truth in TRUTHS:
                number += 1
                found.append(fieller(World(gap, spread, truth), studies, number))
                rival.append(percentiles(World(gap, spread, truth), rivals, number))
            holds, rejects = float(np.mean([each.holds for each in found])), found[0].leaves_out
            # A share is held against its goal up to two standard errors of its own.
            slack, slack_null = (2 * np.sqrt(0.05 * 0.95 / count) for count in (len(TRUTHS) * studies, studies))
            reached &= COVER[0] - slack <= holds <= COVER[1] + slack and rejects <= REJECT + slack_null
            bounded = float(np.mean([each.bounded for each in found]))
            held = float(
                np.nansum([each.held * each.bounded for each in found]) / max(sum(each.bounded for each in found), 1e-9)
            )
            cells = [
                f"{gap:g}",
                f"{spread:g}",
                share(holds, len(TRUTHS) * studies),
                *(f"{100 * each.holds:.1f}" for each in found),
            ]
            cells += [
                f"{100 * bounded:.0f} %",
                f"{100 * held:.1f} %",
                share(rejects, studies),
                share(float(np.mean(rival)), len(TRUTHS) * rivals),
            ]
            table.add_row(*cells)
    return table, reached


def main() -> None:
    parser = argparse.ArgumentParser(description="Counts how often intervals of a recovery hold the truth.")
    parser.add_argument("--studies", type=int, default=1000, help="a gap, spread and true recovery")
    parser.add_argument("--rivals", type=int, default=100, help="studies of the drawn bootstrap, which is slow")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.perf_counter()
    table, reached = report(options.studies, options.rivals, options.seed)
    console = Console(width=170)
    console.print(table)
    goal = f"goal: holds {100 * COVER[0]:.0f} to {100 * COVER[1]:.0f} %, null rejects at most {100 * REJECT:.1f} %"
    console.print(
        f"{goal}: {'reached within two standard errors' if reached else 'MISSED'}; {time.perf_counter() - start:.0f} s"
    )
    raise SystemExit(0 if reached else 1)


if __name__ == "__main__":
    main()
