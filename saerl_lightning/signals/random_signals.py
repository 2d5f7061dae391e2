"""Signals that know nothing: random rows, and another signal's rows on the wrong prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from saerl_lightning.ranges import Count, Seed, require_in_range
from saerl_lightning.records import Prompt
from saerl_lightning.signals.fingerprint import digest
from saerl_lightning.signals.source import Features, SignalSource


class RandomSignals(SignalSource):
    """Gaussian rows keyed by the prompt's uid: a prompt has the same row in any pool and any order.

    Args:
        columns: feature columns (F).
        seed: of the draw.

    Raises:
        InputError: if `columns` is below 1.
    """

    def __init__(self, columns: Count = 64, seed: Seed = 0) -> None:
        self.columns = columns
        self.seed = seed
        require_in_range(self)

    def features(self, prompts: Sequence[Prompt]) -> Float[np.ndarray, "N F"]:
        """Draws standard normal rows, (N, F)."""
        rows = np.empty((len(prompts), self.columns))
        for row, prompt in zip(rows, prompts, strict=True):
            key = hashlib.sha256(f"{self.seed}:{prompt.uid}".encode()).digest()
            np.random.default_rng(int.from_bytes(key)).standard_normal(out=row)
        return rows

    @property
    def by_row(self) -> bool:
        """True: a row is drawn for its uid."""
        return True

    def fingerprint(self, prompts: Sequence[Prompt]) -> str:
        """Hashes the arguments and the uids in order."""
        words = [type(self).__name__, str(self.columns), str(self.seed), *(prompt.uid for prompt in prompts)]
        return hashlib.sha256("\0".join(words).encode()).hexdigest()


class ShuffledSignals(SignalSource):
    """Another signal's rows, dealt to other prompts: every column keeps its values, what they say about prompts is gone.

    No prompt keeps its own row, unless it is alone; duplicates of a prompt may still get each other's.

    Args:
        inner: the signal that is broken.
        seed: of the permutation.
    """

    def __init__(self, inner: SignalSource, seed: Seed = 0) -> None:
        self.inner = inner
        self.seed = seed
        require_in_range(self)

    def features(self, prompts: Sequence[Prompt]) -> Features:
        """Computes the inner rows and permutes them."""
        return self.inner.features(prompts)[without_fixed_points(len(prompts), self.seed)]

    def fingerprint(self, prompts: Sequence[Prompt]) -> str:
        """Covers the inner source and the seed."""
        return digest([type(self).__name__, str(self.seed), self.inner.fingerprint(prompts)])


def without_fixed_points(count: int, seed: int) -> Int[np.ndarray, " N"]:
    """Draws a permutation of one single cycle (Sattolo's algorithm), so that for more than one no place stays its own."""
    random = np.random.default_rng(seed)
    order = np.arange(count)
    for last in range(count - 1, 0, -1):
        other = int(random.integers(last))
        order[last], order[other] = order[other], order[last]
    return order
