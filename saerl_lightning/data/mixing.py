"""How much of each batch comes from elsewhere: tail mixing, and full mixing as its far end."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from jaxtyping import Int

from saerl_lightning.data.callback import Mixing
from saerl_lightning.ranges import CountFrom2, Range, Seed, require_in_range

HalfShare = Annotated[float, Range(0, 0.5)]  # beyond one half two batches only trade places


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

    def __init__(self, fraction: HalfShare = 0.1) -> None:
        self.fraction = fraction
        require_in_range(self)

    def idle(self) -> str:
        """Names the fraction, which may be too small for the batch."""
        why = super().idle()
        return f"{why}: a share of {self.fraction:g} must be half a prompt of a batch or more" if why else ""

    def blend(self, batches: Int[np.ndarray, "B P"]) -> Int[np.ndarray, "B P"]:
        """Swaps the tails of each pair."""
        count, size = batches.shape
        head = size - int(self.fraction * size + 0.5)
        paired = count - count % 2
        mixed = batches.copy()
        mixed[0:paired:2, head:] = batches[1:paired:2, head:]
        mixed[1:paired:2, head:] = batches[0:paired:2, head:]
        return mixed


class FullMixing(Mixing):
    """Deals all prompts of neighbouring batches anew, at random: the far end of mixing.

    With a window the order survives from window to window; without one nothing of it does, and clusters are gone.

    Args:
        window: neighbouring batches that are dealt together; null takes the whole plan. The last window may be shorter.
        seed: of the draw.

    Raises:
        InputError: if `window` is below 2.
    """

    def __init__(self, window: CountFrom2 | None = None, seed: Seed = 0) -> None:
        self.window = window
        self.seed = seed
        require_in_range(self)

    def blend(self, batches: Int[np.ndarray, "B P"]) -> Int[np.ndarray, "B P"]:
        """Permutes each window."""
        random = np.random.default_rng(self.seed)
        window = self.window or max(1, len(batches))
        mixed = batches.copy()
        for start in range(0, len(batches), window):
            part = mixed[start : start + window]
            part[:] = random.permutation(part.ravel()).reshape(part.shape)
        return mixed
