"""Cuts rows into micro-batches by a token budget: the step's gradient is the same for any cut, its memory is not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby


def padded_cut(rows: Sequence[int], lengths: Sequence[int], budget: int, by_length: bool = True) -> list[list[int]]:
    """Groups rows so that no group holds more than `budget` tokens, padding included.

    Args:
        rows: which rows to cut.
        lengths: tokens of every row, prompt and completion.
        budget: most tokens of a micro-batch; a single longer row still gets a group of its own.
        by_length: put rows of similar length together, the longest first, so that the largest memory need shows at once.
    """
    groups: list[list[int]] = []
    widest = 0
    for row in sorted(rows, key=lambda r: -lengths[r]) if by_length else rows:
        widest = max(widest, lengths[row])
        if not groups or (len(groups[-1]) + 1) * widest > budget:
            groups.append([])
            widest = lengths[row]
        groups[-1].append(row)
    return groups


def packed_cut(
    rows: Sequence[int],
    prompts: Sequence[int],
    starts: Sequence[int],
    lengths: Sequence[int],
    budget: int,
    by_length: bool = True,
) -> list[list[int]]:
    """Groups rows that share their prompt's tokens, so that no group holds more than `budget` tokens.

    Args:
        rows: which rows to cut, those of a prompt behind one another.
        prompts: the prompt of every row.
        starts: tokens of every row's prompt, which count once for all rows of the prompt in one micro-batch.
        lengths: tokens of every row, prompt and completion.
        budget: most tokens of a micro-batch; a single longer row still gets a group of its own.
        by_length: fill micro-batches with the largest groups first, which takes fewer of them.
    """
    pieces = list(_pieces(rows, prompts, starts, lengths, budget))
    sizes: list[int] = []
    groups: list[list[int]] = []
    for size, piece in sorted(pieces, key=lambda p: -p[0]) if by_length else pieces:
        open_ones = range(len(groups)) if by_length else range(len(groups))[-1:]
        place = next((i for i in open_ones if sizes[i] + size <= budget), None)
        if place is None:
            sizes.append(size)
            groups.append(piece)
        else:
            sizes[place] += size
            groups[place] += piece
    return groups


def _pieces(
    rows: Sequence[int], prompts: Sequence[int], starts: Sequence[int], lengths: Sequence[int], budget: int
) -> Iterator[tuple[int, list[int]]]:
    """Yields each prompt's rows with their tokens, in several pieces where they exceed the budget together."""
    for _, members in groupby(rows, key=lambda r: prompts[r]):
        size, piece = 0, []
        for row in members:
            own = lengths[row] - starts[row]
            if piece and size + own > budget:
                yield size, piece
                size, piece = 0, []
            size += own if piece else lengths[row]
            piece.append(row)
        yield size, piece
