"""Control signals without information: random rows, and another signal's rows assigned to the wrong prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from saerl_lightning.ranges import Count, Seed, require_in_range
from saerl_lightning.records import Prompt
from saerl_lightning.signals.fingerprint import digest
from saerl_lightning.signals.source import Features, SignalSource, features_by


class RandomSignals(SignalSource):
    """Standard normal feature rows, seeded by the prompt's uid, so that a prompt has the same row in any pool.

    Args:
        columns: Number of feature columns (F).
        seed: Seed of the random rows.

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
        """True, because a row depends only on the seed and the prompt's uid."""
        return True

    def fingerprint(self, prompts: Sequence[Prompt]) -> str:
        """Returns a digest of the arguments and the uids, in order."""
        words = [type(self).__name__, str(self.columns), str(self.seed), *(prompt.uid for prompt in prompts)]
        return hashlib.sha256("\0".join(words).encode()).hexdigest()


class ShuffledSignals(SignalSource):
    """Another signal's rows, assigned to other prompts. The columns keep their values but say nothing about the prompts.

    No prompt keeps its own row (unless there is only one prompt). Duplicated prompts may get each other's rows.

    Args:
        inner: Signal source whose rows are shuffled.
        seed: Seed of the random permutation.
    """

    def __init__(self, inner: SignalSource, seed: Seed = 0) -> None:
        self.inner = inner
        self.seed = seed
        require_in_range(self)

    def features(self, prompts: Sequence[Prompt]) -> Features:
        """Computes the inner source's rows and permutes them."""
        return features_by(self.inner, prompts)[without_fixed_points(len(prompts), self.seed)]

    def fingerprint(self, prompts: Sequence[Prompt]) -> str:
        """Returns a digest of the inner source's fingerprint and the seed."""
        return digest([type(self).__name__, str(self.seed), self.inner.fingerprint(prompts)])


def without_fixed_points(count: int, seed: int) -> Int[np.ndarray, " N"]:
    """Draws a permutation that is one cycle (Sattolo's algorithm), so no position keeps its element (for count > 1)."""
    random = np.random.default_rng(seed)
    order = np.arange(count)
    for last in range(count - 1, 0, -1):
        other = int(random.integers(last))
        order[last], order[other] = order[other], order[last]
    return order
