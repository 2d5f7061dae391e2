"""Random feature rows: the null signal, same shape as a real one and knowing nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from saerl_lightning.errors import InputError
from saerl_lightning.records import Prompt
from saerl_lightning.signals.source import SignalSource


class RandomSignals(SignalSource):
    """Gaussian rows keyed by the prompt's uid: a prompt has the same row in any pool and any order.

    Args:
        columns: feature columns (F).
        seed: of the draw.

    Raises:
        InputError: if `columns` is below 1.
    """

    def __init__(self, columns: int = 64, seed: int = 0) -> None:
        if columns < 1:
            raise InputError(f"RandomSignals.columns is {columns}; write 1 or more")
        self.columns = columns
        self.seed = seed

    def features(self, prompts: Sequence[Prompt]) -> Float[np.ndarray, "N F"]:
        """Draws standard normal rows, (N, F)."""
        rows = np.empty((len(prompts), self.columns))
        for row, prompt in zip(rows, prompts, strict=True):
            key = hashlib.sha256(f"{self.seed}:{prompt.uid}".encode()).digest()
            np.random.default_rng(int.from_bytes(key)).standard_normal(out=row)
        return rows

    def fingerprint(self, prompts: Sequence[Prompt]) -> str:
        """Hashes the arguments and the uids in order."""
        words = [type(self).__name__, str(self.columns), str(self.seed), *(prompt.uid for prompt in prompts)]
        return hashlib.sha256("\0".join(words).encode()).hexdigest()
