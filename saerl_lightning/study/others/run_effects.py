"""Effects of methods against a baseline in a table of runs: intervals over seeds and benchmarks, Holm, and power.

A run's score is its mean over the benchmarks. Runs are not paired, since seeds of others need not mean the same in two
methods. Three seeds give a variance that may be off by a factor of ten, so the methods of a setting share one (analysis
of variance with one factor): n methods of S runs have n (S - 1) degrees of freedom.

Benchmarks are crossed with runs, so the error over both is that of `accuracy_intervals` with benchmarks for questions:

    error² = seeds + max(benchmarks - residual, 0)

`seeds` is the variance of a run's score times (1/S + 1/S0), `benchmarks` the variance of the benchmarks' differences over
B, and `residual` what noise of single scores both contain. Without the second term the interval is of these benchmarks
alone; with it, of benchmarks like these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from saerl_lightning.study.others.run_table import RunTable, Setting
from saerl_lightning.study.statistics import ErrorShares, Estimate, detectable_difference, holm, t_estimate

ALPHA = 0.05
POWER = 0.8
MOST_SEEDS = 100_000  # that a plan is made for


@dataclass(frozen=True)
class Noise:
    """What the methods of a setting share: the spread of their runs."""

    spread: float  # standard deviation of a run's score
    cell: float  # variance of a single benchmark's score that neither run nor benchmark explains
    dof: int  # degrees of freedom of both

    @property
    def shares(self) -> ErrorShares:
        """Shares of an error that is of seeds alone."""
        return ((1.0, float(self.dof)),)


@dataclass(frozen=True)
class RunEffect:
    """A method against the baseline of its setting, in the unit of the scores."""

    setting: str
    method: str
    baseline: str
    runs: tuple[int, int]  # of the method, of the baseline
    these: Estimate  # on these benchmarks: over seeds alone
    like: Estimate  # on benchmarks like these: over seeds and benchmarks
    p_holm: float = float("nan")  # of `like`, in the family of all comparisons


@dataclass(frozen=True)
class MethodEffect:
    """A method against its baselines on average over the settings that it was run in; these count as given."""

    method: str
    settings: int
    difference: Estimate  # over seeds
    p_holm: float = float("nan")  # in the family of all methods


@dataclass(frozen=True)
class SettingPower:
    """What a setting's runs could have shown, and how many seeds a method would need for one point, on these benchmarks."""

    setting: str
    baseline: str
    methods: int
    runs: int
    spread: float
    found: float  # smallest true difference that is found four times in five, in one comparison alone
    found_holm: float  # the same, if it is the only one of the family
    seeds: int  # of each of two methods, for a difference of `points`, in one comparison alone
    seeds_holm: int


@dataclass(frozen=True)
class RunComparison:
    """All that a table of runs says."""

    effects: Sequence[RunEffect]
    methods: Sequence[MethodEffect]
    power: Sequence[SettingPower]
    points: float  # the difference that `power` plans for


def compare_runs(table: RunTable, points: float = 1.0) -> RunComparison:
    """Compares every method with the baseline of its setting.

    Args:
        table: Runs by setting.
        points: True difference whose number of seeds is asked for, in the unit of the scores.
    """
    noises = [noise_of(setting) for setting in table.settings]
    pairs = list(zip(table.settings, noises, strict=True))
    effects = [_effect(setting, noise, each) for setting, noise in pairs for each in _others(setting)]
    family = holm({f"{k}": each.like.p for k, each in enumerate(effects)})
    corrected = [
        RunEffect(each.setting, each.method, each.baseline, each.runs, each.these, each.like, adjusted.adjusted)
        for each, adjusted in zip(effects, family.values(), strict=True)
    ]
    power = [_power(setting, noise, len(effects), points) for setting, noise in pairs]
    return RunComparison(corrected, _by_method(effects, noises, table.settings), power, points)


def noise_of(setting: Setting) -> Noise:
    """Estimates the noise of a setting's runs, which all methods share.

    Args:
        setting: Runs, two or more of at least one method.
    """
    runs = list(setting.runs.values())
    dof = sum(len(each) - 1 for each in runs)
    rest = [each - each.mean(0) for each in runs]  # (S, B) each
    of_runs = [each.mean(1, keepdims=True) for each in rest]
    squares = sum(float((each**2).sum()) for each in of_runs)
    cells = sum(float(((each - own) ** 2).sum()) for each, own in zip(rest, of_runs, strict=True))
    return Noise(float(np.sqrt(squares / dof)), cells / (dof * (runs[0].shape[1] - 1)), dof)


def seeds_needed(spread: float, difference: float, alpha: float = ALPHA) -> int:
    """Number of seeds of each of two methods with which a true difference is found four times in five.

    Args:
        spread: Standard deviation of a run's score.
        difference: True difference of the two methods, in the unit of the scores.
        alpha: Significance level of the test.

    Returns:
        At least 2; `MOST_SEEDS` if more are needed.
    """
    low, high = 1, 2
    while high < MOST_SEEDS and not _enough(high, spread, difference, alpha):
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _enough(middle, spread, difference, alpha) else (middle, high)
    return high


def _enough(seeds: int, spread: float, difference: float, alpha: float) -> bool:
    """Whether a t test of two methods finds the difference four times in five, by the noncentral t distribution."""
    from scipy.special import nctdtr, stdtrit

    dof = 2.0 * (seeds - 1)
    return bool(nctdtr(dof, difference / (spread * np.sqrt(2 / seeds)), stdtrit(dof, 1 - alpha / 2)) <= 1 - POWER)


def _others(setting: Setting) -> list[str]:
    return [each for each in setting.runs if each != setting.baseline]


def _effect(setting: Setting, noise: Noise, method: str) -> RunEffect:
    own, base = setting.runs[method], setting.runs[setting.baseline]
    by_benchmark = own.mean(0) - base.mean(0)  # (B,)
    value, count, per_run = float(by_benchmark.mean()), len(by_benchmark), 1 / len(own) + 1 / len(base)
    seeds = noise.spread**2 * per_run
    benchmarks = max(float(by_benchmark.var(ddof=1)) / count - noise.cell * per_run / count, 0.0)
    error = float(np.sqrt(seeds + benchmarks))
    share = seeds / error**2 if error > 0 else 1.0
    shares = ((share, float(noise.dof)), (1 - share, count - 1.0))
    these = t_estimate(value, float(np.sqrt(seeds)), noise.shares, len(own))
    like = t_estimate(value, error, shares, len(own))
    return RunEffect(setting.name, method, setting.baseline, (len(own), len(base)), these, like)


def _by_method(
    effects: Sequence[RunEffect], noises: Sequence[Noise], settings: Sequence[Setting]
) -> list[MethodEffect]:
    """Means over settings, whose baselines are others, so that errors are independent."""
    dofs: Mapping[str, int] = {setting.name: noise.dof for setting, noise in zip(settings, noises, strict=True)}
    found = []
    for method in dict.fromkeys(each.method for each in effects):
        own = [each for each in effects if each.method == method]
        squares = np.array([each.these.error**2 for each in own]) / len(own) ** 2
        total = float(squares.sum())
        shares = tuple(
            (float(part / total), float(dofs[each.setting])) for part, each in zip(squares, own, strict=True)
        )
        value = float(np.mean([each.these.value for each in own]))
        found.append(MethodEffect(method, len(own), t_estimate(value, float(np.sqrt(total)), shares, len(own))))
    family = holm({each.method: each.difference.p for each in found})
    return [MethodEffect(each.method, each.settings, each.difference, family[each.method].adjusted) for each in found]


def _power(setting: Setting, noise: Noise, family: int, points: float) -> SettingPower:
    base = len(setting.runs[setting.baseline])
    largest = max(1 / len(setting.runs[each]) + 1 / base for each in _others(setting))
    error = noise.spread * float(np.sqrt(largest))
    found, found_holm = (detectable_difference(error, noise.shares, alpha=alpha) for alpha in (ALPHA, ALPHA / family))
    seeds, seeds_holm = (seeds_needed(noise.spread, points, alpha) for alpha in (ALPHA, ALPHA / family))
    runs = sum(map(len, setting.runs.values()))
    return SettingPower(
        setting.name,
        setting.baseline,
        len(setting.runs) - 1,
        runs,
        noise.spread,
        found,
        found_holm,
        seeds,
        seeds_holm,
    )
