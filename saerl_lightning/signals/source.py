"""The seam of signals: feature rows about prompts, one a prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int
from scipy.sparse import csr_array

from saerl_lightning.records import Prompt

Features = csr_array | np.ndarray  # (N, F)


class SignalSource(ABC):
    """Turns prompts into feature rows. The constructor only stores; `features` loads what it needs."""

    @abstractmethod
    def features(self, prompts: Sequence[Prompt]) -> Features:
        """Computes one feature row a prompt, in the prompts' order.

        Returns:
            An (N, F) matrix, sparse where most entries are zero. The same prompts give the same rows.
        """

    @abstractmethod
    def fingerprint(self, prompts: Sequence[Prompt]) -> str:
        """Names this computation over these prompts; equal fingerprints promise equal features (the cache key)."""

    @property
    def by_row(self) -> bool:
        """Whether a row depends on its prompt's uid and messages alone, so that it is the same in every pool.

        Such rows may be kept prompt by prompt, under the fingerprint of no prompts.
        """
        return False

    def stream(self, prompts: Sequence[Prompt]) -> Iterator[tuple[Int[np.ndarray, " n"], Features]]:
        """Yields positions in `prompts` and their rows, part by part, in any order, until every prompt was yielded.

        By default all at once. Only a source that is `by_row` may yield smaller parts: what takes them may stop, and ask
        later for the prompts that are missing.
        """
        yield np.arange(len(prompts)), self.features(prompts)
