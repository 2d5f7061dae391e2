"""What one run's curve says: its area, and where it first stays above a target. Pure; knows no arms and no seeds.

The axis is the caller's: steps, generated tokens or seconds. A curve has V points, x ascending; every function takes the
points as they were measured and interpolates only to cut the curve at a common budget. Runs that don't reach the target
give None, which `censoring` counts; nothing is dropped here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from saerl_lightning.errors import InputError

WINDOW = 3  # evaluations in the running mean that a target is held against
TARGET = 0.5  # of the baseline's mean gain, which its own runs come to (benchmarks/target_reach.py)


def smooth(values: Sequence[float], window: int = WINDOW) -> Float[np.ndarray, " V"]:
    """Gives the trailing running mean: of a point and the `window` - 1 points before it, of fewer at the start.

    Trailing and not centred, so that a value depends on nothing that comes later; it lags alike in every arm.

    Args:
        values: the curve, V points.
        window: points in a mean; 1 leaves the curve as it is.

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
    """Gives the area under a curve by trapezoids, over its length: the curve's mean height, in the curve's own unit.

    Args:
        x: steps, tokens or seconds of the V evaluations, ascending.
        values: the curve at them.
        until: where to cut every arm's curve alike, the value there interpolated; None takes all of it.

    Raises:
        InputError: If there are fewer than two points, x doesn't ascend, a value is NaN, or `until` is outside the curve.
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
    """Finds where the smoothed curve first comes to the target and stays there for `hold` evaluations.

    Args:
        x: steps, tokens or seconds of the V evaluations, ascending.
        values: the curve at them, not smoothed.
        target: the height to reach; equal counts as reached.
        hold: evaluations in a row, the first included, that must be at the target or above.
        window: of `smooth`.

    Returns:
        x of the first of these evaluations; None where the run ended before (censored). The last evaluation alone never
        counts when `hold` is 2: that it stays there was not seen.

    Raises:
        InputError: If x doesn't ascend, a value is NaN, or `hold` is below 1.
    """
    at, height = _points(x, values)
    if hold < 1:
        raise InputError(f"the target held for {hold} evaluations; write at least 1")
    # Means of equal numbers may round below them.
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
    """Gives the mean time to the target, counted up to the horizon: the area under the Kaplan-Meier curve from 0 to it.

    Behind the last run that was followed the curve is held (nobody else reaches the target), which can only lengthen the
    mean (Gill's convention).

    Args:
        times: where each run reached the target, None where it did not; n of them.
        followed: x of each run's last evaluation; n.
        horizon: the common budget, in the same unit.

    Raises:
        InputError: If there is no run, the lengths differ, a time is behind its run's end, or no run got to the horizon.

    Source: Kaplan & Meier 1958; restricted mean: Irwin 1949, Royston & Parmar 2013 (10.1186/1471-2288-13-152).
    """
    return _mean(*_observed(times, followed, horizon), horizon)


def pseudo_times(times: Sequence[float | None], followed: Sequence[float], horizon: float) -> Float[np.ndarray, " n"]:
    """Gives each run's own share of the restricted mean, so that arms can be compared pair by pair.

    Run i has n·mean(all) - (n-1)·mean(all but i). Where every run was followed to the horizon this is min(time, horizon).

    Args:
        times: as in `restricted_mean`.
        followed: as there.
        horizon: as there.

    Raises:
        InputError: As there.

    Source: Andersen, Hansen & Klein 2004 (10.1007/s10985-004-4771-0).
    """
    end, reached = _observed(times, followed, horizon)
    count = len(end)
    if count == 1:
        return end
    others = [_mean(np.delete(end, i), np.delete(reached, i), horizon) for i in range(count)]
    return count * _mean(end, reached, horizon) - (count - 1) * np.array(others)


def _mean(end: np.ndarray, reached: np.ndarray, horizon: float) -> float:
    total, waiting, since = 0.0, 1.0, 0.0  # `waiting`: the Kaplan-Meier share of runs still below the target
    for time in np.unique(end[reached]):
        total += waiting * (time - since)
        waiting *= 1 - np.sum(reached & (end == time)) / np.sum(end >= time)
        since = time
    return float(total + waiting * (horizon - since))


def _observed(
    times: Sequence[float | None], followed: Sequence[float], horizon: float
) -> tuple[np.ndarray, np.ndarray]:
    """Where each run was last seen waiting, at most the horizon, and whether it reached the target there."""
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
