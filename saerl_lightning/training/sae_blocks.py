"""Blocks of activations and the batches that are served from them: a shuffle buffer that can be stepped into anywhere.

Token lists are shuffled once and cut into blocks. An epoch goes through the blocks in an order of its own, and through
each block's positions in an order of its own; both follow from the seed, the epoch and the block. So batch number s of a run
is known without the batches before it, and a resumed run harvests one block, not all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saerl_lightning.signals.trie import Tokens


def cut(sizes: Sequence[int], block_size: int) -> list[slice]:
    """Cuts a sequence of sizes into as few even blocks as keep each near `block_size`.

    Even, because a small last block would leave out a large share of its positions.

    Args:
        sizes: positions of each token list.
        block_size: positions that a block should hold; a block may be over by less than one list.
    """
    ends = np.cumsum(sizes)
    blocks = max(1, -(-int(ends[-1]) // block_size))
    edges = np.searchsorted(ends, [ends[-1] * k / blocks for k in range(1, blocks)]) + 1
    marks = sorted({0, *map(int, edges), len(sizes)})
    return [slice(a, b) for a, b in pairwise(marks)]


class BlockLoader:
    """Serves batches of activations without end, from the batch that comes next in the run.

    Its length is that of an epoch, which is how Lightning counts. It is a plain iterable and no torch `DataLoader`, which
    would draw from torch's global random state.

    Args:
        blocks: token lists of each block, of this rank.
        batches: batches of each block, the same on every rank.
        size: positions a batch, of this rank.
        harvest: makes activations of token lists.
        seed: of the orders.
        rank: of this process; ranks go through the same blocks, each through its own positions.
        served: batches that the run has served before.
    """

    def __init__(
        self,
        blocks: Sequence[Sequence[Tokens]],
        batches: Sequence[int],
        size: int,
        harvest: Callable[[Sequence[Tokens]], Float[Tensor, "n d"]],
        seed: int = 0,
        rank: int = 0,
        served: int = 0,
    ) -> None:
        self.blocks = blocks
        self.batches = batches
        self.size = size
        self.harvest = harvest
        self.seed = seed
        self.rank = rank
        self.served = served
        self._held: tuple[int, Float[Tensor, "n d"]] | None = None
        self._order: tuple[tuple[int, int], Int[np.ndarray, " n"]] | None = None

    def __len__(self) -> int:
        """Batches of an epoch."""
        return sum(self.batches)

    def __iter__(self) -> Iterator[Float[Tensor, "size d"]]:
        """Starts behind the last batch that was served; ends never, for Lightning stops at the length."""
        step = self.served
        while True:
            yield self.batch(step)
            step += 1

    def batch(self, step: int) -> Float[Tensor, "size d"]:
        """The batch that a run serves as number `step`, from 0."""
        epoch, place = divmod(step, len(self))
        for index in self._rng(epoch).permutation(len(self.blocks)).tolist():
            if place < self.batches[index]:
                rows = self._rows(epoch, index)[place * self.size : (place + 1) * self.size]
                return self.block(index)[torch.from_numpy(rows)]
            place -= self.batches[index]
        raise AssertionError("an epoch's batches are those of its blocks")

    def block(self, index: int) -> Float[Tensor, "n d"]:
        """The activations of a block; the last one asked for is kept."""
        if self._held is None or self._held[0] != index:
            self._held = None  # its memory goes before the next block's comes
            self._held = index, self.harvest(self.blocks[index])
        return self._held[1]

    def first(self) -> Float[Tensor, "n d"]:
        """The block that a run begins with."""
        return self.block(int(self._rng(0).permutation(len(self.blocks))[0]))

    def _rows(self, epoch: int, index: int) -> Int[np.ndarray, " n"]:
        if self._order is None or self._order[0] != (epoch, index):
            self._order = (epoch, index), self._rng(epoch, 1 + index, self.rank).permutation(len(self.block(index)))
        return self._order[1]

    def _rng(self, *place: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *place])

    def state_dict(self) -> dict[str, Any]:
        """Holds nothing: it tells Lightning that this loader resumes; the datamodule's state has the cursor."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes nothing back, see `state_dict`."""
