"""Mixing: exchanges prompts between neighbouring batches (tail mixing), or shuffles windows of batches (full mixing)."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from jaxtyping import Int

from saerl_lightning.data.callback import Mixing
from saerl_lightning.ranges import CountFrom2, Range, Seed, require_in_range

HalfShare = Annotated[float, Range(0, 0.5)]  # above one half, two batches only exchange their places


class TailMixing(Mixing):
    """Exchanges the last m = round(fraction * P) prompts of neighbouring batches.

    The paper says only "adjacent batches". We use the pairs (0, 1), (2, 3), ..., so that a prompt moves by at most one
    batch. With overlapping pairs, the tail of batch 0 would move to the end of the epoch. A last batch without a
    partner is not changed.

    Args:
        fraction: Share of a batch that is exchanged, in [0, 0.5]. Above one half, the two batches would only exchange
            places.

    Raises:
        InputError: if `fraction` is out of range.
    """

    def __init__(self, fraction: HalfShare = 0.1) -> None:
        self.fraction = fraction
        require_in_range(self)

    def idle(self) -> str:
        """Returns why nothing moved, with the fraction, which may be too small for the batch size."""
        why = super().idle()
        return f"{why}: a share of {self.fraction:g} must be half a prompt of a batch or more" if why else ""

    def blend(self, batches: Int[np.ndarray, "B P"]) -> Int[np.ndarray, "B P"]:
        """Exchanges the tails of each pair."""
        count, size = batches.shape
        head = size - int(self.fraction * size + 0.5)
        paired = count - count % 2
        mixed = batches.copy()
        mixed[0:paired:2, head:] = batches[1:paired:2, head:]
        mixed[1:paired:2, head:] = batches[0:paired:2, head:]
        return mixed


class FullMixing(Mixing):
    """Shuffles all prompts of neighbouring batches: the extreme of mixing.

    With a window, the order between windows is kept. Without one, order and clusters are lost completely.

    Args:
        window: Number of neighbouring batches that are shuffled together; null takes the whole plan. The last window
            may be shorter.
        seed: Seed of the shuffling.

    Raises:
        InputError: if `window` is below 2.
    """

    def __init__(self, window: CountFrom2 | None = None, seed: Seed = 0) -> None:
        self.window = window
        self.seed = seed
        require_in_range(self)

    def blend(self, batches: Int[np.ndarray, "B P"]) -> Int[np.ndarray, "B P"]:
        """Permutes the prompts of each window."""
        random = np.random.default_rng(self.seed)
        window = self.window or max(1, len(batches))
        mixed = batches.copy()
        for start in range(0, len(batches), window):
            part = mixed[start : start + window]
            part[:] = random.permutation(part.ravel()).reshape(part.shape)
        return mixed
