"""One error rate for several comparisons: Holm's step-down over the primary family. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan

from saerl_lightning.errors import InputError


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
