"""Cuts rows into micro-batches by a token budget: the step's gradient is the same for any cut, its memory is not."""

from __future__ import annotations

from collections.abc import Sequence


def micro_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Groups rows of similar length so that no group holds more than `budget` tokens, padding included.

    Args:
        lengths: tokens of each row (R,).
        budget: most tokens of a micro-batch; a single longer row still gets a group of its own.

    Returns:
        Row indices by group, longest rows first, so that the largest memory need shows in the first group.
    """
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda r: -lengths[r]):
        if not groups or (len(groups[-1]) + 1) * lengths[groups[-1][0]] > budget:
            groups.append([])
        groups[-1].append(row)
    return groups
