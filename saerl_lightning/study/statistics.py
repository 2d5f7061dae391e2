"""What can be said from a few seeds: t intervals, paired differences, exact sign flips, and the power there was. Pure.

Two arms are compared pair by pair: run i of each starts from the same seed, so what the seed does to both cancels. With
five pairs the normal quantile is far too short (a 95 % interval of mean ± 1.96 errors covers 88 %), hence Student's t. The
sign-flip test assumes less, but five pairs have only 32 patterns: its p is never below 2/32 = .0625, so it can't reject
alone; the report shows it beside t as a check. Accuracies, which also vary with the questions asked, are `bootstrap`'s.
n pairs, one a seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan

import numpy as np
from jaxtyping import Float

from saerl_lightning.errors import InputError

EXACT_PAIRS = 20  # 2^20 patterns are listed; more would not fit
SMALLEST_P = 1e-12
SAME = 1e-12  # relative spread of numbers that are equal but for rounding


Parts = tuple[tuple[float, float], ...]  # of a squared error: each part's share of it, and its degrees of freedom


@dataclass(frozen=True)
class Estimate:
    """A value with its interval and the p-value of 'it is zero'.

    `low`, `high`, `p` and `error` are NaN where they can't be had: one pair only, or pairs that do not vary at all.
    """

    value: float
    low: float
    high: float
    p: float  # two-sided
    error: float  # standard error, in the value's unit
    parts: Parts  # what the error is made of
    pairs: int


def t_quantile(level: float, parts: Parts) -> float:
    """Gives the quantile of an estimate over its error: of the parts' Student t, averaged by their shares.

    Args:
        level: 0 to 1.
        parts: shares that add up to 1, with the degrees of freedom of each; one part gives Student's t itself.

    Source: Cochran & Cox 1950, Experimental Designs, §4.14; Cochran 1964 (10.2307/2527621): it errs to the safe side.
    """
    from scipy.special import stdtrit

    return float(sum(share * stdtrit(dof, level) for share, dof in parts))


def t_p(t: float, parts: Parts) -> float:
    """Gives the two-sided p-value of an estimate `t` errors from zero: the level whose interval just ends at zero.

    Found by halving, down to 1e-12.

    Args:
        t: estimate over error.
        parts: of the error, as in `t_quantile`.
    """
    low, high = np.log(SMALLEST_P), 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_quantile(np.exp(middle) / 2, parts) < -abs(t) else (low, middle)
    return float(np.exp(high))


def t_estimate(value: float, error: float, parts: Parts, pairs: int, level: float = 0.95) -> Estimate:
    """Gives the value ± t·error, and the chance of a |t| this large if the truth is zero.

    Args:
        value: the estimate.
        error: its standard error, above zero; NaN gives an interval of NaN.
        parts: what the error is made of.
        pairs: seeds behind it, for the record.
        level: share of studies whose interval holds the truth.
    """
    if not error > 0:
        nan = float("nan")
        return Estimate(value, nan, nan, nan, nan, parts, pairs)
    half = t_quantile((1 + level) / 2, parts) * error
    return Estimate(value, value - half, value + half, t_p(value / error, parts), error, parts, pairs)


def mean_estimate(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Estimates the mean over seeds of one number a run: its t interval with n - 1 degrees of freedom.

    Args:
        values: one a seed; n of them.
        level: of the interval.

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
    """Estimates by how much one number a run differs between two arms: area, steps to target, seconds, tokens.

    Args:
        arm: one a seed; n of them.
        baseline: of the same seeds in the same order.
        level: of the interval.

    Raises:
        InputError: If the lengths differ, no pair is given, or a number is NaN.
    """
    return mean_estimate(_differences(arm, baseline).tolist(), level)


def sign_flip_p(arm: Sequence[float], baseline: Sequence[float]) -> float:
    """Gives the exact p-value of 'which arm is which is a coin flip in every pair', two-sided.

    All 2^n ways to swap the arms within pairs are counted; p is the share whose |mean difference| is at least the one seen.

    Args:
        arm: one a seed; n of them, at most 20.
        baseline: of the same seeds in the same order.

    Raises:
        InputError: If the lengths differ, a number is NaN, or there are more than 20 pairs.

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


def detectable_difference(error: float, parts: Parts, power: float = 0.8, alpha: float = 0.05) -> float:
    """Gives the smallest true difference that a two-sided test with this error would have found with this power.

    It is (t(1 - alpha/2) + t(power))·error: 3.72 errors at 4 degrees of freedom, 2.80 at many. (The noncentral t, which
    this stands for, gives 3.76 and 2.80.) A comparison that Holm corrects for m must pass alpha / m if it stands alone.

    Args:
        error: standard error of the difference, as observed or planned.
        parts: what the error is made of.
        power: chance to find it.
        alpha: level of the test.

    Source: minimum detectable effect, Bloom 1995 (10.1177/0193841X9501900504).
    """
    return (t_quantile(1 - alpha / 2, parts) + t_quantile(power, parts)) * error


def _differences(arm: Sequence[float], baseline: Sequence[float]) -> Float[np.ndarray, " n"]:
    if len(arm) != len(baseline):
        raise InputError(
            f"{len(arm)} runs against {len(baseline)}; give the seeds that both arms finished, in one order"
        )
    return np.asarray(arm, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)


@dataclass(frozen=True)
class Adjusted:
    """One comparison of a family after Holm's correction."""

    p: float  # as it was
    adjusted: float  # to hold against alpha; NaN where the comparison could not be made
    rejected: bool  # whether 'no difference' is rejected


def holm(p: Mapping[str, float], alpha: float = 0.05) -> dict[str, Adjusted]:
    """Adjusts p-values so that the chance of any false rejection in the family is at most alpha.

    The i-th smallest of m is multiplied by m - i + 1 and never falls below the one before it. A comparison that could not
    be made (NaN: an arm failed) stays in the count, as if its p were 1: the family is the one that was planned.

    Args:
        p: p-value of each comparison, by name.
        alpha: chance of one or more false rejections.

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
