"""Intervals and p-values over a few seeds: Student's t, paired differences, ratios, sign flips, power, Holm. Pure functions.

Two arms are compared in pairs: run i of each has the same seed, so effects of the seed on both arms cancel. With five
pairs the normal quantile is too short (mean ± 1.96 errors covers 88 % instead of 95 %), so Student's t is used. The
sign-flip test assumes less. But five pairs have only 32 patterns: its p-value is never below 2/32 = 0.0625, so it can't
reject alone, and the report shows it beside t as a check. Accuracies also vary with the questions; `accuracy_intervals`
is for these. n pairs, one a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan

import numpy as np
from jaxtyping import Float

from saerl_lightning.data.scores import Interval
from saerl_lightning.errors import InputError

# Largest number of pairs for the exact test, which lists all 2^20 patterns in memory.
EXACT_PAIRS = 20
SMALLEST_P = 1e-12
SAME = 1e-12  # largest relative spread of numbers that differ by rounding only


ErrorShares = tuple[tuple[float, float], ...]  # of a squared error: each part's share of it, and its degrees of freedom


@dataclass(frozen=True)
class Estimate:
    """A value with its interval and the p-value of the hypothesis that it is zero.

    `low`, `high`, `p` and `error` are NaN if there is only one pair, or if all pairs are equal.
    """

    value: float
    low: float
    high: float
    error: float  # standard error, in the value's unit
    shares: ErrorShares  # what the error is made of
    pairs: int

    @property
    def p(self) -> float:
        """Two-sided p-value; computed when asked for, because it takes longer than the interval."""
        return t_p(self.value / self.error, self.shares) if self.error > 0 else float("nan")


def t_quantile(level: float, shares: ErrorShares) -> float:
    """Quantile of an estimate divided by its error: Student's t quantiles of the components, averaged by share.

    Args:
        level: Probability between 0 and 1.
        shares: Components of the squared error: share of each (they sum to 1) and degrees of freedom. One component
            gives Student's t itself.

    Source: Cochran & Cox 1950, Experimental Designs, §4.14; Cochran 1964 (10.2307/2527621), who shows it is conservative.
    """
    from scipy.special import stdtrit

    return float(sum(share * stdtrit(dof, level) for share, dof in shares))


def t_p(t: float, shares: ErrorShares) -> float:
    """Two-sided p-value of an estimate `t` errors from zero: 1 minus the level whose interval ends at zero.

    It is found by bisection, down to 1e-12.

    Args:
        t: Estimate divided by its standard error.
        shares: Components of the squared error: share and degrees of freedom of each.
    """
    low, high = np.log(SMALLEST_P), 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_quantile(np.exp(middle) / 2, shares) < -abs(t) else (low, middle)
    return float(np.exp(high))


def t_estimate(value: float, error: float, shares: ErrorShares, pairs: int, level: float = 0.95) -> Estimate:
    """Interval value ± t·error, and the p-value of the hypothesis that the truth is zero.

    Args:
        value: Estimated value of the quantity.
        error: Standard error of the value, above zero; NaN gives an interval of NaN.
        shares: Components of the squared error: share and degrees of freedom of each.
        pairs: Number of seeds behind the estimate, stored only.
        level: Confidence level of the interval.
    """
    if not error > 0:
        nan = float("nan")
        return Estimate(value, nan, nan, nan, shares, pairs)
    half = t_quantile((1 + level) / 2, shares) * error
    return Estimate(value, value - half, value + half, error, shares, pairs)


def mean_estimate(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Estimates the mean over seeds of one number a run, with a t interval of n - 1 degrees of freedom.

    Args:
        values: The n numbers, one a seed.
        level: Confidence level of the interval.

    Raises:
        InputError: If there is no value, or one is NaN.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise InputError(f"a mean over seeds of {array.tolist()}; give one finite number a finished run, at least one")
    count = len(array)
    spread = array.std(ddof=1) if count > 1 and np.ptp(array) > SAME * np.abs(array).max() else float("nan")
    return t_estimate(float(array.mean()), float(spread / np.sqrt(count)), ((1.0, count - 1.0),), count, level)


def paired_difference(arm: Sequence[float], baseline: Sequence[float], level: float = 0.95) -> Estimate:
    """Estimates the difference of two arms in one number a run: area, steps to target, seconds, tokens.

    Args:
        arm: The arm's n numbers, one a seed.
        baseline: The baseline's n numbers, with the seeds in the same order.
        level: Confidence level of the interval.

    Raises:
        InputError: If the lengths differ, no pair is given, or a number is NaN.
    """
    return mean_estimate(_differences(arm, baseline).tolist(), level)


def sign_flip_p(arm: Sequence[float], baseline: Sequence[float]) -> float:
    """Exact two-sided p-value of the hypothesis that arm and baseline are exchangeable in every pair.

    All 2^n ways to swap the arms within pairs are listed; p is the share whose |mean difference| is at least the
    observed one.

    Args:
        arm: The arm's n numbers, one a seed; at most 20.
        baseline: The baseline's n numbers, with the seeds in the same order.

    Raises:
        InputError: If the lengths differ, a number is NaN, or there are more than `EXACT_PAIRS` pairs.

    Source: Fisher 1935, The Design of Experiments, §21.
    """
    difference = _differences(arm, baseline)  # (n,)
    count = len(difference)
    if count > EXACT_PAIRS:
        raise InputError(
            f"{count} pairs have 2^{count} sign patterns; at most {EXACT_PAIRS} are listed: use the t interval"
        )
    total = np.zeros(1)
    for value in difference:
        total = np.concatenate([total + value, total - value])  # (2^i,)
    seen = abs(difference.sum())
    return float(np.mean(np.abs(total) >= seen - SAME * np.abs(difference).sum()))


def detectable_difference(error: float, shares: ErrorShares, power: float = 0.8, alpha: float = 0.05) -> float:
    """Smallest true difference that a two-sided test with this error finds with probability `power`.

    It is (t(1 - alpha/2) + t(power))·error: 3.72 errors at 4 degrees of freedom, 2.80 at many. It approximates the
    noncentral t, which gives 3.76 and 2.80. In a family of m comparisons, a single true difference must pass alpha / m
    under Holm's correction.

    Args:
        error: Standard error of the difference, observed or planned.
        shares: Components of the squared error: share and degrees of freedom of each.
        power: Probability of finding the difference.
        alpha: Significance level of the test.

    Source: minimum detectable effect, Bloom 1995 (10.1177/0193841X9501900504).
    """
    return (t_quantile(1 - alpha / 2, shares) + t_quantile(power, shares)) * error


def ratio_estimate(combined: Callable[[float, float], Estimate]) -> Interval:
    """Estimates numerator / denominator, with Fieller's 95 % interval: every ratio that a test doesn't reject.

    A ratio r is rejected if zero is outside of the interval of numerator - r·denominator. So numerator and denominator may
    depend on each other, and the interval need not be symmetric. It has two ends only if the denominator's interval is
    above zero.

    Args:
        combined: Estimate of a·numerator - b·denominator, given a and b.

    Returns:
        Ratio and interval, which reaches from -inf to inf where it has no two ends, and is NaN where nothing varies.

    Source: Fieller 1954, Some problems in interval estimation, Journal of the Royal Statistical Society B 16, 175-185.
    """
    from scipy.optimize import root_scalar

    numerator, denominator = combined(1.0, 0.0).value, -combined(0.0, 1.0).value
    value = numerator / denominator if denominator else float("nan")
    # Ratios are angles: tan(angle) is numerator / denominator, and a quarter turn is a denominator of zero.
    edge, best = np.pi / 2, np.arctan2(numerator, denominator)

    def tested(angle: float) -> Estimate:
        return combined(np.cos(angle), np.sin(angle))

    # Runs that are the same, or in proportion, leave only rounding at the best ratio.
    if not tested(best).error > SAME * tested(edge).error:
        return Interval(value)
    if tested(edge).high >= 0:
        return Interval(value, -np.inf, np.inf)
    low = root_scalar(lambda angle: tested(angle).low, bracket=(-edge, best), xtol=1e-9).root
    high = root_scalar(lambda angle: tested(angle).high, bracket=(best, edge), xtol=1e-9).root
    return Interval(value, float(np.tan(low)), float(np.tan(high)))


def _differences(arm: Sequence[float], baseline: Sequence[float]) -> Float[np.ndarray, " n"]:
    if len(arm) != len(baseline):
        raise InputError(
            f"{len(arm)} runs against {len(baseline)}; give the seeds that both arms finished, in one order"
        )
    return np.asarray(arm, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)


@dataclass(frozen=True)
class Adjusted:
    """One comparison of a family after Holm's correction."""

    p: float  # unadjusted
    adjusted: float  # to compare with alpha; NaN if the comparison could not be made
    rejected: bool  # whether the hypothesis of no difference is rejected


def holm(p: Mapping[str, float], alpha: float = 0.05) -> dict[str, Adjusted]:
    """Adjusts p-values so that the probability of any false rejection in the family is at most alpha.

    The i-th smallest of m p-values is multiplied by m - i + 1 and never falls below the one before it. A comparison
    that could not be made (NaN: an arm failed) counts as p = 1, so that the family stays the planned one.

    Args:
        p: P-value of each comparison, by name.
        alpha: Probability of one or more false rejections.

    Returns:
        The same names, in the same order.

    Raises:
        InputError: If a p-value is outside 0 to 1.

    Source: Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    wrong = {name: value for name, value in p.items() if not isnan(value) and not 0 <= value <= 1}
    if wrong:
        raise InputError(f"p-values outside 0 to 1: {wrong}; give probabilities")
    ordered = sorted(p, key=lambda name: 1.0 if isnan(p[name]) else p[name])
    adjusted, floor = {}, 0.0
    for rank, name in enumerate(ordered):
        if not isnan(p[name]):
            floor = max(floor, min(1.0, (len(p) - rank) * p[name]))
            adjusted[name] = floor
    return {
        name: Adjusted(value, adjusted.get(name, float("nan")), adjusted.get(name, 1.0) <= alpha)
        for name, value in p.items()
    }
