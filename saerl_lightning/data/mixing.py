"""Tail mixing: a moderate share of each batch comes from its neighbour."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from saerl_lightning.data.callback import Mixing
from saerl_lightning.errors import InputError


class TailMixing(Mixing):
    """Swaps the last m = round(fraction * P) prompts of neighbouring batches.

    The paper says "adjacent batches" and no more. Ours: pairs (0, 1), (2, 3), ... that do not overlap, so a prompt
    moves by one batch at most; going through every b in turn would carry batch 0's tail to the end of the epoch. A
    last batch without a partner stays whole.

    Args:
        fraction: share of a batch that is swapped, in [0, 0.5]; beyond one half the two batches only trade places.

    Raises:
        InputError: if `fraction` is out of range.
    """

    def __init__(self, fraction: float = 0.1) -> None:
        if not 0 <= fraction <= 0.5:
            raise InputError(f"TailMixing.fraction is {fraction}; write a share from 0 (off) to 0.5 (an even mix)")
        self.fraction = fraction

    def blend(self, batches: Int[np.ndarray, "B P"]) -> Int[np.ndarray, "B P"]:
        """Swaps the tails of each pair."""
        count, size = batches.shape
        head = size - int(self.fraction * size + 0.5)
        paired = count - count % 2
        mixed = batches.copy()
        mixed[0:paired:2, head:] = batches[1:paired:2, head:]
        mixed[1:paired:2, head:] = batches[0:paired:2, head:]
        return mixed
