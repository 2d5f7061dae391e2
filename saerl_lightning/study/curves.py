"""Summarises a validation curve: its area, and the first point at which it stays above a target. Pure functions.

The x axis may be steps, generated tokens or seconds. A curve has V points with x ascending. Functions use the measured
points and interpolate only where a common budget cuts the curve. A run that does not reach the target gives None, which
`restricted_mean` counts as censored.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from saerl_lightning.errors import InputError

# Number of evaluations in the running mean that is compared with the target.
WINDOW = 3
# The target as a share of the baseline's mean gain. The baseline's own runs reach it (benchmarks/target_reach.py).
TARGET = 0.5


def smooth(values: Sequence[float], window: int = WINDOW) -> Float[np.ndarray, " V"]:
    """Computes the trailing running mean: of each point and the `window` - 1 points before it, fewer at the start.

    It is trailing and not centred, so that a value does not depend on later points. The lag is equal in all arms.

    Args:
        values: Values of the curve, V points.
        window: Number of points in a mean; 1 leaves the curve as it is.

    Raises:
        InputError: If `window` is below 1.
    """
    if window < 1:
        raise InputError(f"a running mean over {window} evaluations; write at least 1 (1 = no smoothing)")
    total = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])  # (V+1,)
    end = np.arange(1, len(total))
    start = np.maximum(end - window, 0)
    return (total[end] - total[start]) / (end - start)


def area(x: Sequence[float], values: Sequence[float], until: float | None = None) -> float:
    """Computes the mean height of a curve: its area by trapezoids, divided by its length.

    Args:
        x: Steps, tokens or seconds of the V evaluations, ascending.
        values: Values of the curve at x.
        until: Point at which the curve is cut, with its value interpolated; null takes all of the curve.

    Raises:
        InputError: If there are fewer than two points, x doesn't ascend, a value is NaN, or `until` is outside the
            curve.
    """
    at, height = _points(x, values)
    end = at[-1] if until is None else until
    if len(at) < 2 or not at[0] < end <= at[-1]:
        raise InputError(
            f"no area up to {end:g} under a curve of {len(at)} evaluations from {at[0]:g} to {at[-1]:g}; "
            "write an end inside the curve, behind its first point"
        )
    before = at < end
    at, height = np.append(at[before], end), np.append(height[before], np.interp(end, at, height))
    return float(np.trapezoid(height, at) / (at[-1] - at[0]))


def steps_to_target(
    x: Sequence[float], values: Sequence[float], target: float, hold: int = 2, window: int = WINDOW
) -> float | None:
    """Finds the first point at which the smoothed curve reaches the target and stays there for `hold` evaluations.

    Args:
        x: Steps, tokens or seconds of the V evaluations, ascending.
        values: Values of the curve at x, not smoothed.
        target: Value to reach; an equal value counts as reached.
        hold: Number of evaluations in a row that must be at the target or above, the first one included.
        window: Number of points in the running mean of `smooth`.

    Returns:
        x of the first of these evaluations; None if the run ended before (censored). With `hold` 2 the last evaluation
        alone does not count, because no later one confirms it.

    Raises:
        InputError: If x doesn't ascend, a value is NaN, or `hold` is below 1.
    """
    at, height = _points(x, values)
    if hold < 1:
        raise InputError(f"the target held for {hold} evaluations; write at least 1")
    # The mean of equal numbers may be a little below them by rounding, hence the tolerance.
    reached = smooth(height.tolist(), window) >= target - 1e-12 * max(1.0, abs(target))  # (V,)
    if len(reached) < hold:
        return None
    held = np.lib.stride_tricks.sliding_window_view(reached, hold).all(1)  # (V-hold+1,)
    return float(at[held.argmax()]) if held.any() else None


def _points(x: Sequence[float], values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    at, height = np.asarray(x, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if not len(at) or at.shape != height.shape:
        raise InputError(f"a curve of {len(at)} positions and {len(height)} values; give one value a position")
    if not (np.isfinite(at).all() and np.isfinite(height).all()):
        raise InputError("a curve with NaN or infinite points; leave out the evaluations that did not happen")
    if (np.diff(at) <= 0).any():
        raise InputError(f"a curve whose x doesn't ascend: {at.tolist()}; sort it, one evaluation each")
    return at, height


def restricted_mean(times: Sequence[float | None], followed: Sequence[float], horizon: float) -> float:
    """Computes the mean time to the target up to the horizon: the area under the Kaplan-Meier curve.

    After the end of the longest run the Kaplan-Meier curve is held constant, as if no further run reached the target.
    This can only make the mean longer (Gill's convention).

    Args:
        times: Times at which the n runs reached the target; null for a run that did not.
        followed: Value of x at the last evaluation of each of the n runs.
        horizon: Common budget, in the unit of x.

    Raises:
        InputError: If there is no run, the lengths differ, a time is behind its run's end, or no run got to the
            horizon.

    Source: Kaplan & Meier 1958; restricted mean: Irwin 1949, Royston & Parmar 2013 (10.1186/1471-2288-13-152).
    """
    return _mean(*_observed(times, followed, horizon), horizon)


def pseudo_times(times: Sequence[float | None], followed: Sequence[float], horizon: float) -> Float[np.ndarray, " n"]:
    """Computes each run's contribution to the restricted mean, so that arms can be compared in pairs.

    The contribution of run i is n·mean(all) - (n-1)·mean(all but i). If every run was followed to the horizon, it is
    min(time, horizon).

    Args:
        times: Times at which the n runs reached the target; null for a run that did not.
        followed: Value of x at the last evaluation of each of the n runs.
        horizon: Common budget, in the unit of x.

    Raises:
        InputError: If there is no run, the lengths differ, a time is behind its run's end, or no run got to the
            horizon.

    Source: Andersen, Hansen & Klein 2004 (10.1007/s10985-004-4771-0).
    """
    end, reached = _observed(times, followed, horizon)
    count = len(end)
    if count == 1:
        return end
    others = [_mean(np.delete(end, i), np.delete(reached, i), horizon) for i in range(count)]
    return count * _mean(end, reached, horizon) - (count - 1) * np.array(others)


def _mean(end: np.ndarray, reached: np.ndarray, horizon: float) -> float:
    # `waiting` is the Kaplan-Meier share of runs that are still below the target.
    total, waiting, since = 0.0, 1.0, 0.0
    for time in np.unique(end[reached]):
        total += waiting * (time - since)
        waiting *= 1 - np.sum(reached & (end == time)) / np.sum(end >= time)
        since = time
    return float(total + waiting * (horizon - since))


def _observed(
    times: Sequence[float | None], followed: Sequence[float], horizon: float
) -> tuple[np.ndarray, np.ndarray]:
    """End of each run's observation, at most the horizon, and whether it reached the target there."""
    if not times or len(times) != len(followed):
        raise InputError(
            f"{len(times)} times and {len(followed)} ends of runs; give one of each a run, None = not reached"
        )
    if horizon > max(followed):
        raise InputError(
            f"a horizon of {horizon:g}, but the longest run ends at {max(followed):g}; write that or an earlier one"
        )
    late = [(t, f) for t, f in zip(times, followed, strict=True) if t is not None and t > f]
    if late:
        raise InputError(f"a target reached at {late[0][0]:g} by a run that ends at {late[0][1]:g}; check their unit")
    end = np.array([f if t is None else t for t, f in zip(times, followed, strict=True)], dtype=np.float64)
    reached = np.array([t is not None and t <= horizon for t in times])
    return np.minimum(end, horizon), reached
