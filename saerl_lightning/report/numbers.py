"""Numbers as people read them. Nothing is rounded before it gets here."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def count(value: float) -> str:
    """A number of things, in groups of three digits."""
    return f"{value:,.0f}"


def number(value: float) -> str:
    """A measured number with about three digits that matter; a dash where there is none."""
    if not np.isfinite(value):
        return "–"
    if round(float(value), 9).is_integer() and abs(value) < 1e15:  # 0.9999999999 is a correlation of 1
        return count(value)
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}" if abs(value) < 10 else f"{value:,.1f}"


def share(part: float, whole: float) -> str:
    """A share in per cent; a dash of nothing."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


def interval(low: float, high: float) -> str:
    """A 95 % interval; a dash where there is none."""
    return f"{number(low)} to {number(high)}" if np.isfinite(low) and np.isfinite(high) else "–"


def with_intervals(metrics: Mapping[str, float]) -> list[tuple[str, float, tuple[float, float]]]:
    """Folds `x`, `x_low` and `x_high` into one entry: name, value, (low, high); NaN where there is no interval."""
    ends = {f"{name}_{end}" for name in metrics for end in ("low", "high")}
    missing = float("nan")
    return [
        (name, value, (metrics.get(f"{name}_low", missing), metrics.get(f"{name}_high", missing)))
        for name, value in metrics.items()
        if name not in ends
    ]
