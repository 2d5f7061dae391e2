"""Mean steps to a target when some runs never reach it: the restricted mean of Kaplan and Meier. Pure.

A run that ends below the target is censored: all that is known is that its time is later than its last evaluation. It is
neither dropped (which flatters the arm) nor given the budget as its time (which is wrong if it ended early). Restricted to
a horizon the mean exists: the mean of min(time, horizon). Where every run was followed to the horizon it is just that.
n runs, one a seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from saerl_lightning.errors import InputError


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
